//! Messages on the control channel, the links and the queue: the other end runs the pool's own code.

use std::fmt::Debug;
use std::io::{IoSlice, IoSliceMut, Read};
use std::os::fd::{AsRawFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair};
use php_pool::control::{Channel, FromWorker, FromZygote, Handover, ToWorker, ToZygote};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Cursor;

/// Any packet is a message, or an error; and whatever comes, no descriptor of it stays open.
pub fn messages(data: &[u8]) {
    let mut cursor = Cursor(data);
    let (kind, descriptors) = (cursor.byte(), cursor.byte() % 24);
    let packet = &cursor.0[..cursor.0.len().min(100_000)];
    match kind % 5 {
        0 => receive::<FromZygote>(packet, descriptors),
        1 => receive::<FromWorker>(packet, descriptors),
        2 => receive::<Handover>(packet, descriptors),
        3 => receive::<ToZygote>(packet, descriptors),
        _ => receive::<ToWorker>(packet, descriptors),
    }
}

fn receive<M: Serialize + DeserializeOwned + Debug>(packet: &[u8], descriptors: u8) {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
        .expect("there are descriptors");
    let (mut end, writer) = std::io::pipe().expect("there are descriptors");
    let raw: Vec<RawFd> = (0..descriptors).map(|_| writer.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(
        theirs.as_raw_fd(),
        &[IoSlice::new(packet)],
        control,
        MsgFlags::empty(),
        None,
    )
    .expect("it is sent");

    drop(writer);
    let channel = Channel::<M, M>::from(ours);
    if let Ok(received) = channel.receive(false) {
        assert!(received.fds.len() <= usize::from(descriptors));
        // What is understood can be said, in about as many bytes, and is understood again as the same. (About: what is beyond a
        // second of a duration's nanoseconds may make its seconds longer.)
        let said = format!("{:?}", received.message);
        drop(received.fds);
        channel
            .send(&received.message, &[], false)
            .expect("the socket takes it");
        let mut buffer = vec![0; packet.len() + 16];
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let length = recvmsg::<()>(theirs.as_raw_fd(), &mut slices, None, MsgFlags::empty())
            .expect("it is there")
            .bytes;
        nix::unistd::write(&theirs, &buffer[..length]).expect("it is sent");
        let again = channel.receive(false).expect("it is a message");
        assert_eq!(said, format!("{:?}", again.message));
    }
    // The pipe ends when its last writer is closed.
    nix::fcntl::fcntl(&end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("it is open");
    let left = end.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(left, Ok(0), "a descriptor that came with the message is still open");
}
