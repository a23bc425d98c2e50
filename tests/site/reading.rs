//! Pages that are only read, one after the other and all at once.

use std::thread;

use crate::Case;

const READERS: usize = 20;
const PAGES_EACH: usize = 15;

/// What the wiki says of a page that nobody has written yet.
pub const MISSING: &str = "This topic does not exist yet";

pub const CASES: &[Case] = &[
    ("the_start_page_is_shown", |site, front| {
        let mut visitor = site.visitor(front);
        let moved = visitor.get("/");
        assert_eq!(moved.expect_status(302).header("Location"), "/doku.php?id=start");
        let start = visitor.get("/doku.php");
        start
            .expect_status(200)
            .expect("The wiki of the tests")
            .expect(MISSING)
            .expect("</html>");
    }),
    ("style_sheets_and_scripts_are_put_together", |site, front| {
        let mut visitor = site.visitor(front);
        let style = visitor.get("/lib/exe/css.php?t=dokuwiki&s=screen");
        assert!(style.expect_status(200).header("Content-Type").starts_with("text/css"));
        assert!(style.body.len() > 20_000, "{} bytes", style.body.len());
        let script = visitor.get("/lib/exe/js.php?t=dokuwiki");
        assert!(script.expect_status(200).header("Content-Type").contains("javascript"));
        assert!(script.body.len() > 20_000, "{} bytes", script.body.len());
        let query = visitor.get("/lib/exe/jquery.php");
        assert!(
            query.expect_status(200).body.len() > 100_000,
            "{} bytes",
            query.body.len()
        );
    }),
    ("a_missing_script_is_not_found", |site, front| {
        let mut visitor = site.visitor(front);
        let page = visitor.get("/no-such-script.php");
        page.expect_status(404);
    }),
    ("twenty_readers_at_once_get_every_page_whole", |site, front| {
        site.visitor(front);
        thread::scope(|scope| {
            for reader in 0..READERS {
                scope.spawn(move || {
                    let mut visitor = site.visitor(front);
                    for page in 0..PAGES_EACH {
                        let id = format!("reader{reader}:page{page}");
                        let page = visitor.get(&format!("/doku.php?id={id}"));
                        // Whose page it is stands in it: no reader gets what another asked for.
                        page.expect_status(200).expect(&format!("<span>{id}</span>"));
                        assert!(page.text().trim_end().ends_with("</html>"), "cut off:\n{}", page.text());
                    }
                });
            }
        });
    }),
];
