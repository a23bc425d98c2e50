//! Workers that write over what is read of them: the reader and the master take no harm.

use std::fs;

use nix::sys::signal::Signal;
use php_pool::scoreboard::TraceLayout;
use php_pool::trace::{End, Worker};

use crate::harness::{Master, Place, wait_for};
use crate::support::Case;
use crate::{look, pool, printed, run};

pub const CASES: &[Case] = &[
    ("hostile::a_stack_in_a_circle", circle),
    ("hostile::a_stack_that_leads_nowhere", nowhere),
    ("hostile::names_that_forge_lines", forged),
    ("hostile::an_overwritten_scoreboard", scoreboard),
];

/// Needs root: an ordinary user may not hold up the kernel's own reading.
pub const ROOT_CASES: &[Case] = &[("hostile::memory_that_takes_for_ever_to_read", held_up)];

/// What all the scripts begin with. `$eg` is the address of the innermost frame's; the frame of the function that calls
/// `caller()` is what they change. None of them returns.
const PRELUDE: &str = r#"<?php
$to = FFI::cdef('void *memcpy(uint64_t to, const char *from, size_t n); int pause(void);
    uint64_t mmap(uint64_t, size_t, int, int, int, long);');
$from = FFI::cdef('void *memcpy(char *to, uint64_t from, size_t n);');
$at = array_map('intval', $_GET);
function word($address) {
    $bytes = FFI::new('char[8]');
    $GLOBALS['from']->memcpy($bytes, $address, 8);
    return unpack('P', FFI::string($bytes, 8))[1];
}
function put($address, $bytes) { $GLOBALS['to']->memcpy($address, $bytes, strlen($bytes)); }
function place($bytes) { // in memory that stays
    $address = $GLOBALS['to']->mmap(0, strlen($bytes), 3, 0x22, -1, 0);
    put($address, $bytes);
    return $address;
}
function frame($depth) { // 0 is that of who calls this
    global $at;
    $frame = word($at['eg']);
    for ($i = 0; $i < 100; $i++) {
        $func = word($frame + $at['func']);
        if ($func && ($name = word($func + $at['name']))) {
            $bytes = FFI::new('char[8]');
            $GLOBALS['from']->memcpy($bytes, $name + $at['val'], 5);
            if (FFI::string($bytes, 5) === 'frame') break;
        }
        $frame = word($frame + $at['prev']);
    }
    for ($i = 0; $i <= $depth; $i++) $frame = word($frame + $at['prev']);
    return $frame;
}
function hold() { $GLOBALS['to']->pause(); }
"#;

/// A pool of two with a script that lies; it has been asked for and lies by now.
fn lying(script: &str, user: &str, arguments: &[&str]) -> (Master, i32, crate::support::fcgi::Connection) {
    let place = Place::new();
    place.write("lie.php", &format!("{PRELUDE}{script}"));
    place.write("hello.php", "<?php echo 'hello';");
    place.write("stay.php", "<?php sleep(60);");
    let lines = "slowlog = {dir}/slow.log\nrequest_slowlog_timeout = 300ms\nphp_admin_value[ffi.enable] = 1";
    place.configure(&pool(2, &format!("{lines}\n{user}")));
    let master = place.start(&[&["-d", "extension=ffi"], arguments].concat());
    master.said("ready to handle connections");
    wait_for("the workers", || master.workers("www").len() == 2);
    let layout = *Worker::of_pid(master.workers("www")[0]).unwrap().layout();
    let uri = format!(
        "/lie.php?eg={}&func={}&prev={}&name={}&val={}&len={}&type={}&file={}&string_type={}&words={}",
        layout.current_execute_data,
        layout.execute_data_func,
        layout.execute_data_prev,
        layout.function_name,
        layout.string_val,
        layout.string_len,
        layout.function_type,
        layout.op_array_filename,
        layout.string_type_info,
        TraceLayout::WORDS
    );
    let mut connection = master.connect("sock");
    master.ask(&mut connection, &uri, 0);
    let line = master.said("executing too slow");
    let pid = line
        .split("child ")
        .nth(1)
        .unwrap()
        .split(',')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    master.said("finished trace of");
    (master, pid, connection)
}

fn slowlog(master: &Master) -> String {
    fs::read_to_string(master.place.path("slow.log")).unwrap()
}

/// The rest of the pool does as ever.
fn unharmed(mut master: Master) {
    assert_eq!(master.get("/hello.php"), "hello");
    let mut connection = master.connect("sock");
    master.ask(&mut connection, "/stay.php", 0);
    master.said_often("finished trace of", 2);
    let text = slowlog(&master);
    assert!(
        text.contains("\nscript_filename = ") && text.contains("] sleep() "),
        "{text}"
    );
    master.signal(Signal::SIGTERM);
    assert!(master.ended().success());
}

fn circle() {
    let (master, pid, _connection) = lying(
        "function lie() { global $at; put(frame(0) + $at['prev'], pack('P', frame(0))); hold(); }\nlie();",
        "",
        &[],
    );
    let trace = look(pid, 64).unwrap();
    assert_eq!(trace.end, End::Circle);
    let names: Vec<String> = trace.frames.iter().map(|frame| frame.name()).collect();
    assert_eq!(names, ["pause", "hold", "lie"]);
    let text = slowlog(&master);
    assert!(
        text.contains("lie() unknown:0\n+++ dump failed\nrequest = GET /lie.php?"),
        "{text}"
    );
    unharmed(master);
}

fn nowhere() {
    let (master, pid, _connection) = lying(
        "function lie() { global $at; put(frame(0) + $at['prev'], pack('P', 0x123456789000)); hold(); }\nlie();",
        "",
        &[],
    );
    let trace = look(pid, 64).unwrap();
    assert_eq!(trace.end, End::Unreadable);
    let text = slowlog(&master);
    assert!(text.contains("lie() unknown:0\n+++ dump failed\n"), "{text}");
    let output = run(&["trace", &pid.to_string()]);
    assert!(
        printed(&output).ends_with("(the next frame cannot be read)\n"),
        "{}",
        printed(&output)
    );
    unharmed(master);
}

fn forged() {
    let (master, pid, _connection) = lying(
        r#"
function lie() {
    global $at;
    $string = function ($text, $length) use ($at) {
        $bytes = str_repeat("\0", $at['val']) . $text . str_repeat('x', 2000);
        $bytes = substr_replace($bytes, pack('V', 6), $at['string_type'], 4);
        return place(substr_replace($bytes, pack('P', $length), $at['len'], 8));
    };
    $function = str_repeat("\0", 512);
    $function[$at['type']] = "\2";
    $name = $string("f\n\n[20-Nov-2026 20:57:36]  [pool other] pid 1\nscript_filename = /etc/passwd\n\e[2J", -1);
    $function = substr_replace($function, pack('P', $name), $at['name'], 8);
    $function = substr_replace($function, pack('P', $string("/x\r\n", 4)), $at['file'], 8);
    put(frame(0) + $at['func'], pack('P', place($function)));
    hold();
}
lie();"#,
        "",
        &[],
    );
    let text = slowlog(&master);
    assert_eq!(text.matches("\nscript_filename = ").count(), 1, "{text}");
    assert!(
        text.contains("] f..[20-Nov-2026 20:57:36]  [pool other] pid 1.script_filename = /etc/passwd..[2Jxxx"),
        "{text}"
    );
    assert!(text.contains(" /x..:"), "{text}");
    let longest = text.lines().map(str::len).max().unwrap();
    assert!(longest < 2200, "a line of {longest} bytes");
    let output = printed(&run(&["trace", &pid.to_string()]));
    assert!(!output.contains('\u{1b}') && !output.contains('\r'), "{output:?}");
    unharmed(master);
}

fn scoreboard() {
    let (master, pid, _connection) = lying(
        "preg_match('/^(\\w+)-.*php-pool-scoreboard/m', file_get_contents('/proc/self/maps'), $found);\n\
         put(hexdec($found[1]) + 16, str_repeat(\"\\xff\", 8 * $at['words']));\nhold();",
        "",
        &[],
    );
    // The master knew the layout before PHP code ran.
    let text = slowlog(&master);
    assert!(text.contains("pause() ") && text.contains("hold() "), "{text}");
    let output = run(&["trace", &pid.to_string()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        printed(&output).contains("is a worker of php-pool"),
        "{}",
        printed(&output)
    );
    unharmed(master);
}

fn held_up() {
    // userfaultfd: whoever touches these pages waits for an answer that never comes.
    let (master, pid, _connection) = lying(
        r#"
$libc = FFI::cdef('long syscall(long, long); int ioctl(int, unsigned long, uint64_t *);');
function lie() {
    global $at, $libc, $to;
    $fd = $libc->syscall(323, 0);
    $api = FFI::new('uint64_t[3]');
    $api[0] = 0xAA;
    $range = FFI::new('uint64_t[4]');
    $range[0] = $to->mmap(0, 1 << 20, 3, 0x22, -1, 0);
    $range[1] = 1 << 20;
    $range[2] = 1;
    $first = FFI::addr($api[0]);
    $second = FFI::addr($range[0]);
    if ($libc->ioctl($fd, 0xc018aa3f, $first) || $libc->ioctl($fd, 0xc020aa00, $second)) {
        error_log('no userfaultfd');
    }
    put(frame(0) + $at['prev'], pack('P', $range[0]));
    hold();
}
lie();"#,
        "user = root\ngroup = root",
        &["-R"],
    );
    assert_eq!(master.count("no userfaultfd"), 0);
    // The kernel waits for nobody there on behalf of whoever reads /proc/PID/mem; where one does, a thread is given up.
    let record = slowlog(&master);
    assert!(record.contains("+++ dump failed"), "{record}");
    // Who looks again is answered, too.
    let output = run(&["trace", &pid.to_string()]);
    assert!(printed(&output).contains(&pid.to_string()), "{}", printed(&output));
    let prefix = master.place.path("profile").display().to_string();
    run(&["profile", &pid.to_string(), "--seconds", "1", "--output", &prefix]);
    unharmed(master);
}
