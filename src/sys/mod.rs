//! What the kernel offers and neither nix nor rustix does. With [`crate::master`]'s own corner the only `unsafe` of the
//! library that is not the mapping of the scoreboard or the channel's descriptors.

mod ahead;
mod title;

pub use ahead::Ahead;
pub use title::{set_title, take_name_of};
