//! Pages that are edited, and files that are uploaded.

use std::thread;
use std::time::{Duration, Instant};

use crate::Case;
use crate::reading::MISSING;
use crate::site::DENIED;
use crate::support::browser::{Browser, Page, set};
use crate::support::fcgi::PATIENCE;
use crate::support::web::Front;

/// Text that does not survive a careless hand: quotes, markup, several scripts, an empty line at the end.
const TEXT: &str =
    "====== Prüfung ======\n\nA paragraph with \"quotes\", 'more' & <b>markup</b>; λόγος, 漢字, 🐘.\n\n  * a list\n";

pub const CASES: &[Case] = &[
    ("a_stranger_may_not_edit", |site, front| {
        let mut stranger = site.visitor(front);
        let page = stranger.get(&format!("/doku.php?id={front}:locked&do=edit"));
        page.expect(DENIED);
        let forged = [
            ("do[save]", ""),
            ("wikitext", "x"),
            ("id", "locked"),
            ("date", "0"),
            ("prefix", "."),
        ];
        let forged = forged.map(|(n, v)| (n.to_owned(), v.to_owned()));
        stranger.post("/doku.php", &forged);
        stranger.get("/doku.php?id=locked").expect(MISSING);
    }),
    ("a_page_is_edited_and_saved", |site, front| {
        let mut editor = site.editor(front);
        let id = format!("{front}:edited");
        save(&mut editor, &id, TEXT, "first");
        let page = editor.get(&format!("/doku.php?id={id}"));
        page.expect_status(200)
            .expect("Prüfung</h1>")
            .expect("&lt;b&gt;markup&lt;/b&gt;; λόγος, 漢字, 🐘");
        assert_eq!(raw(&mut editor, &id), TEXT);
        save(&mut editor, &id, &format!("{TEXT}more"), "second");
        assert_eq!(raw(&mut editor, &id), format!("{TEXT}more"));
    }),
    ("a_preview_shows_the_text_and_saves_nothing", |site, front| {
        let mut editor = site.editor(front);
        let id = format!("{front}:previewed");
        let mut form = editor.get(&format!("/doku.php?id={id}&do=edit")).form("dw__editform");
        set(&mut form, "wikitext", "only **looked** at");
        set(&mut form, "do[preview]", "");
        editor
            .post("/doku.php", &form)
            .expect("only <strong>looked</strong> at");
        editor.get(&format!("/doku.php?id={id}")).expect(MISSING);
    }),
    ("a_page_of_a_megabyte_is_saved_whole", |site, front| {
        let mut editor = site.editor(front);
        let id = format!("{front}:large");
        let mut text = String::new();
        for line in 0.. {
            if text.len() > 1 << 20 {
                break;
            }
            text += &format!("  line {line}, with some words: ünïcode\n");
        }
        save(&mut editor, &id, &text, "a megabyte");
        assert!(raw(&mut editor, &id) == text, "the text is not the one that was sent");
    }),
    ("a_file_of_a_few_megabytes_comes_back_byte_for_byte", |site, front| {
        let mut editor = site.editor(front);
        let content = noise(5 << 20);
        let page = editor.get(&format!("/lib/exe/mediamanager.php?ns={front}"));
        let mut form = page.form("dw__upload");
        set(&mut form, "ns", &front.to_string());
        set(&mut form, "mediaid", "noise.zip");
        let path = format!("/lib/exe/mediamanager.php?ns={front}");
        editor
            .upload(&path, &form, "upload", "noise.zip", &content)
            .expect("Upload successful");
        let fetched = editor.get(&fetch(front, "noise.zip"));
        assert!(
            fetched.expect_status(200).body == content,
            "the file is not the one that was uploaded"
        );
    }),
    (
        "a_file_sent_as_the_whole_body_comes_back_byte_for_byte",
        |site, front| {
            // As the media manager's script sends it: PHP reads it from php://input.
            let mut editor = site.editor(front);
            let content = noise(3 << 20);
            assert_eq!(upload_raw(&mut editor, front, "raw.zip", &content), 200);
            assert!(
                editor.get(&fetch(front, "raw.zip")).body == content,
                "not the file that was sent"
            );
        },
    ),
    ("parts_of_a_file_are_served", |site, front| {
        let mut editor = site.editor(front);
        let content = noise(1 << 20);
        upload_raw(&mut editor, front, "parts.zip", &content);
        let path = fetch(front, "parts.zip");
        let middle = editor.send("GET", &path, &[("Range", "bytes=100000-899999")], &[]);
        assert_eq!(
            middle.expect_status(206).header("Content-Range"),
            "bytes 100000-899999/1048576"
        );
        assert!(middle.body == content[100_000..900_000]);
        let last = editor.send("GET", &path, &[("Range", "bytes=1048570-")], &[]);
        assert_eq!(last.expect_status(206).body, content[1_048_570..]);
        let beyond = editor.send("GET", &path, &[("Range", "bytes=2000000-")], &[]);
        assert!(beyond.status != 206 || beyond.body.is_empty(), "{}", beyond.status);
        let head = editor.send("HEAD", &path, &[], &[]);
        assert!(head.expect_status(200).body.is_empty());
        let since = head.header("Last-Modified").to_owned();
        let same = editor.send("GET", &path, &[("If-Modified-Since", &since)], &[]);
        assert!(same.expect_status(304).body.is_empty());
    }),
    ("an_image_is_scaled", |site, front| {
        let mut editor = site.editor(front);
        let image = editor.get("/lib/tpl/dokuwiki/images/logo.png");
        upload_raw(&mut editor, front, "logo.png", &image.expect_status(200).body);
        // The token that allows a size is in the page that shows it.
        save(
            &mut editor,
            &format!("{front}:gallery"),
            &format!("{{{{{front}:logo.png?50}}}}"),
            "an image",
        );
        let page = editor.get(&format!("/doku.php?id={front}:gallery")).text();
        let link = page
            .split("src=\"")
            .find(|part| part.contains("w=50"))
            .expect("the image is shown");
        let link = link[..link.find('"').expect("it ends")].replace("&amp;", "&");
        let small = editor.get(&link);
        assert_eq!(small.expect_status(200).header("Content-Type"), "image/png");
        assert_eq!(
            small.body[16..24],
            [0, 0, 0, 50, 0, 0, 0, 50],
            "width and height of the PNG"
        );
    }),
    ("a_saved_page_is_found", |site, front| {
        let mut editor = site.editor(front);
        let id = format!("{front}:found");
        let word = format!("zebrafish{front}");
        save(
            &mut editor,
            &id,
            &format!("A page about {word}, and nothing else."),
            "found",
        );
        // The index is made by a request whose answer goes out before the work is done.
        let gif = editor.get(&format!("/lib/exe/taskrunner.php?id={id}"));
        assert_eq!(gif.expect_status(200).header("Content-Type"), "image/gif");
        let deadline = Instant::now() + PATIENCE;
        loop {
            let page = editor.get(&format!("/doku.php?do=search&id=start&q={word}"));
            if page.text().contains(&format!("id={id}&amp;s")) {
                page.expect(&format!("<strong class=\"search_hit\">{word}</strong>"));
                return;
            }
            assert!(Instant::now() < deadline, "not found:\n{}", page.text());
            thread::sleep(Duration::from_millis(50));
        }
    }),
    ("old_revisions_and_changes_are_shown", |site, front| {
        let mut editor = site.editor(front);
        let id = format!("{front}:history");
        save(&mut editor, &id, "once", "the first summary");
        editor
            .get(&format!("/doku.php?id={id}&do=revisions"))
            .expect("the first summary");
        editor.get("/doku.php?do=recent").expect(&id);
        editor.get("/feed.php?mode=recent").expect("<rdf:RDF").expect(&id);
    }),
];

/// Edits a page as a browser does: takes the form, changes the text, sends it.
fn save(editor: &mut Browser, id: &str, text: &str, summary: &str) {
    let mut form = editor.get(&format!("/doku.php?id={id}&do=edit")).form("dw__editform");
    set(&mut form, "wikitext", text);
    set(&mut form, "summary", summary);
    set(&mut form, "do[save]", "");
    let saved = editor.post("/doku.php", &form);
    let to = saved.expect_status(302).header("Location").to_owned();
    assert!(to.contains(id), "sent on to {to}");
}

fn raw(browser: &mut Browser, id: &str) -> String {
    let page = browser.get(&format!("/doku.php?id={id}&do=export_raw"));
    page.expect_status(200).text()
}

/// Uploads a file as the body of a request; the status.
fn upload_raw(editor: &mut Browser, front: Front, name: &str, content: &[u8]) -> u16 {
    let token = editor.get("/lib/exe/mediamanager.php").form("dw__upload");
    let token = token
        .iter()
        .find(|(name, _)| name == "sectok")
        .expect("the form has one")
        .1
        .clone();
    let path = format!("/lib/exe/ajax.php?call=mediaupload&qqfile={name}&ns={front}&ow=true&sectok={token}");
    let kind = [("Content-Type", "application/octet-stream")];
    let page: Page = editor.send("POST", &path, &kind, content);
    page.expect("\"success\":true").status
}

fn fetch(front: Front, name: &str) -> String {
    format!("/lib/exe/fetch.php?media={front}:{name}")
}

/// Bytes in which every offset looks different, so that a lost, doubled or moved piece shows.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
