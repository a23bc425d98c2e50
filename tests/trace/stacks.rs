//! Where a script can be when somebody looks.

use std::time::{Duration, Instant};

use php_pool::trace::slowlog::calls;
use php_pool::trace::{Backtrace, End};

use crate::harness::{Master, PATIENCE, Place, wait_for};
use crate::support::Case;
use crate::{look, pool, printed, run, worker_with};

pub const CASES: &[Case] = &[
    ("stacks::every_place_is_seen_by_the_interpreter", interpreter),
    ("stacks::every_place_is_seen_with_opcache", opcache),
    ("stacks::every_place_is_seen_with_jit", jit),
    ("stacks::deep_recursion_is_cut", deep_recursion),
    ("stacks::a_busy_script_is_never_seen_where_it_cannot_be", busy),
    ("stacks::an_idle_worker_has_no_request", idle),
    ("stacks::the_command_prints_what_php_would", command),
];

/// A script, and the calls in it at the moment at which it sleeps, the innermost first; `@` stands for its own file.
struct Stack {
    name: &'static str,
    code: &'static str,
    calls: &'static [&'static str],
}

const STACKS: &[Stack] = &[
    Stack {
        name: "functions",
        code: "<?php\nnamespace A\\B;\nclass C {\n  static function s() { sleep(60); }\n  function m($x) {\n    self::s();\n  }\n}\n\
               function f() { (new C)->m(1); }\nf();",
        calls: &["sleep() @:4", "A\\B\\C::s() @:6", "A\\B\\C::m() @:9", "A\\B\\f() @:10"],
    },
    Stack {
        name: "inherited",
        code: "<?php\nabstract class P { function run() { $this->go(); } abstract function go(); }\ntrait T { function go() {\n sleep(60); } }\n\
               (new class extends P { use T; })->run();",
        calls: &["sleep() @:4", "P@anonymous::go() @:2", "P::run() @:5"],
    },
    Stack {
        name: "callbacks",
        code: "<?php\n$deep = fn($x) => sleep($x);\nclass C { function m($f) { return array_map(function ($x) use ($f) {\n  return $f($x);\n\
               }, [60]); } }\npreg_replace_callback('/a/', fn($m) => (new C)->m($deep), 'a');",
        calls: &[
            "sleep() @:2",
            "{closure}() @:4",
            "C::{closure}() @:3",
            "array_map() @:3",
            "C::m() @:6",
            "{closure}() @:6",
            "preg_replace_callback() @:6",
        ],
    },
    Stack {
        name: "magic",
        code: "<?php\nclass M {\n  function __call($n, $a) { helper(); }\n  static function __callStatic($n, $a) { $o = new M; $o(); }\n\
               function __invoke() { echo new M; }\n  function __toString() { return $this->nope; }\n\
               function __get($n) { sleep(60); }\n}\nfunction helper() { M::other(); }\n$m = new M; $m->what(1);",
        calls: &[
            "sleep() @:7",
            "M::__get() @:6",
            "M::__toString() @:5",
            "M::__invoke() @:4",
            "M::__callStatic() @:9",
            "helper() @:3",
            "M::__call() @:10",
        ],
    },
    Stack {
        name: "includes",
        code: "<?php\nfile_put_contents(__DIR__ . '/includes.inc', \"<?php\\nfunction inner() {\\n  eval(\\\"\\\\nsleep(60);\\\");\\n}\\ninner();\");\n\
               function outer() {\n  require __DIR__ . '/includes.inc';\n}\nouter();",
        calls: &[
            "sleep() includes.inc(3) : eval()'d code:2",
            "[INCLUDE_OR_EVAL]() includes.inc:3",
            "inner() includes.inc:5",
            "[INCLUDE_OR_EVAL]() @:4",
            "outer() @:6",
        ],
    },
    Stack {
        name: "autoload",
        code: "<?php\nspl_autoload_register(function ($name) {\n  sleep(60);\n});\nnew\nMissing;",
        calls: &["sleep() @:3", "{closure}() @:6"],
    },
    Stack {
        name: "generators",
        code: "<?php\nfunction inner() { yield 1;\n  sleep(60); yield 2; }\nfunction middle() {\n  yield from inner(); }\n\
               function outer() { yield 0;\n  yield from middle(); }\nfunction user() { foreach (outer() as $x);\n}\nuser();",
        calls: &[
            "sleep() @:3",
            "inner() @:5",
            "middle() @:7",
            "outer() @:8",
            "user() @:10",
        ],
    },
    Stack {
        name: "generator_methods",
        code: "<?php\nfunction g() { $x = yield 1;\n  sleep(60); }\n$g = g();\n$g->current();\n$g->send(2);",
        calls: &["sleep() @:3", "g() @:6", "Generator::send() @:6"],
    },
    Stack {
        name: "fibers",
        code: "<?php\nfunction work() { Fiber::suspend();\n  sleep(60); }\n$outer = new Fiber(function () {\n  $inner = new Fiber(fn() =>\n\
               work());\n  $inner->start();\n  $inner->resume();\n});\n$outer->start();",
        calls: &[
            "sleep() @:3",
            "work() @:6",
            "{closure}() @:8",
            "Fiber::resume() @:8",
            "{closure}() @:10",
            "Fiber::start() @:10",
        ],
    },
    Stack {
        name: "destructor",
        code: "<?php\nclass D { function __destruct() {\n  sleep(60); } }\nfunction f() { $d = new D;\n  unset($d);\n}\nf();",
        calls: &["sleep() @:3", "D::__destruct() @:5", "f() @:7"],
    },
    Stack {
        name: "unwinding",
        code: "<?php\nclass D { function __destruct() {\n  sleep(60); } }\nfunction f() { $d = new D;\n  throw new Exception;\n}\n\
               try {\n  f(); } catch (Exception) {}",
        // PHP takes the frame away before what it holds.
        calls: &["sleep() @:3", "D::__destruct() @:8"],
    },
    Stack {
        name: "finally",
        code: "<?php\nfunction f() {\n  try { throw new Exception; } finally {\n    sleep(60); }\n}\ntry { f(); } catch (Exception) {}",
        calls: &["sleep() @:4", "f() @:6"],
    },
    Stack {
        name: "error_handler",
        code: "<?php\nset_error_handler(function () {\n  sleep(60); });\nfunction f() {\n  echo $undefined;\n}\nf();",
        calls: &["sleep() @:3", "{closure}() @:5", "f() @:7"],
    },
    Stack {
        name: "output_callback",
        code: "<?php\nob_start(function ($text) {\n  sleep(60); return $text; });\necho 'x';\nob_end_flush();",
        calls: &["sleep() @:3", "{closure}() @:5", "ob_end_flush() @:5"],
    },
    Stack {
        name: "usleep",
        code: "<?php\nusleep(60_000_000);",
        calls: &["usleep() @:2"],
    },
    Stack {
        name: "stream_select",
        code: "<?php\n$p = stream_socket_pair(STREAM_PF_UNIX, STREAM_SOCK_STREAM, 0);\n$r = [$p[0]]; $w = $e = null;\n\
               stream_select($r, $w, $e, 60);",
        calls: &["stream_select() @:4"],
    },
    Stack {
        name: "fgets",
        code: "<?php\n$p = stream_socket_pair(STREAM_PF_UNIX, STREAM_SOCK_STREAM, 0);\nfgets($p[0]);",
        calls: &["fgets() @:3"],
    },
    Stack {
        name: "flock",
        code: "<?php\n$a = fopen(__FILE__, 'r'); $b = fopen(__FILE__, 'r');\nflock($a, LOCK_EX);\nflock($b, LOCK_EX);",
        calls: &["flock() @:4"],
    },
    Stack {
        name: "exec",
        code: "<?php\nexec('sleep 60');",
        calls: &["exec() @:2"],
    },
    Stack {
        name: "database",
        code: "<?php\n$file = __DIR__ . '/db'; $one = new PDO(\"sqlite:$file\"); $two = new PDO(\"sqlite:$file\");\n\
               $two->setAttribute(PDO::ATTR_TIMEOUT, 60);\n$one->exec('BEGIN EXCLUSIVE');\n$two->exec('BEGIN EXCLUSIVE');",
        calls: &["PDO::exec() @:5"],
    },
];

fn interpreter() {
    every_place(&[]);
}

fn opcache() {
    every_place(&["zend_extension=opcache", "opcache.enable=1"]);
}

fn jit() {
    every_place(&[
        "zend_extension=opcache",
        "opcache.enable=1",
        "opcache.jit=tracing",
        "opcache.jit_buffer_size=16M",
    ]);
}

fn every_place(settings: &[&str]) {
    let place = Place::new();
    for stack in STACKS {
        place.write(&format!("{}.php", stack.name), stack.code);
    }
    place.configure(&pool(STACKS.len(), ""));
    let mut arguments = vec!["-d", "extension=pdo", "-d", "extension=pdo_sqlite"];
    for setting in settings {
        arguments.extend(["-d", setting]);
    }
    let master = place.start(&arguments);
    master.said("ready to handle connections");
    let mut connections = Vec::new();
    for stack in STACKS {
        let mut connection = master.connect("sock");
        master.ask(&mut connection, &format!("/{}.php", stack.name), 0);
        connections.push(connection);
    }
    let mut wrong = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    for stack in STACKS {
        let file = format!("{}.php", stack.name);
        let wanted: Vec<String> = stack
            .calls
            .iter()
            .map(|call| call.replace("@:", &format!("{file}:")))
            .collect();
        loop {
            let found = worker_with(&master, &file);
            let seen = found.as_ref().map(|(_, trace)| named(&master, trace));
            if seen.as_ref() == Some(&wanted) {
                let (_, trace) = found.unwrap();
                assert!(trace.steady && trace.end == End::Complete, "{}: {trace:?}", stack.name);
                break;
            }
            if Instant::now() > deadline {
                wrong.push(format!("{}: {seen:#?} instead of {wanted:#?}", stack.name));
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), master.log().join("\n"));
}

/// The calls, without the folder, and with closures named as in PHP 8.3: later ones say where they are, with closures inside
/// of closures inside of the name.
fn named(master: &Master, trace: &Backtrace) -> Vec<String> {
    let folder = format!("{}/", master.place.path("").display()).replace("//", "/");
    let closure = |call: String| match (call.find("{closure:"), call.find("}() ")) {
        (Some(start), Some(end)) => format!("{}{{closure{}", &call[..start], &call[end..]),
        _ => call,
    };
    calls(trace, 64)
        .into_iter()
        .map(|call| closure(call.replace(&folder, "")))
        .collect()
}

fn deep_recursion() {
    let place = Place::new();
    place.write(
        "deep.php",
        "<?php\nfunction down($n) {\n  if ($n == 0) sleep(60);\n  else down($n - 1);\n}\ndown(20000);",
    );
    place.configure(&pool(1, ""));
    let master = place.serve_with(1);
    let worker = master.workers("www")[0];
    let mut connection = master.connect("sock");
    master.ask(&mut connection, "/deep.php", 0);
    wait_for("the script to sleep", || {
        look(worker, 4).is_ok_and(|trace| trace.frames.first().is_some_and(|frame| frame.name() == "sleep"))
    });
    let trace = look(worker, 1000).unwrap();
    assert_eq!((trace.end, trace.steady), (End::Limit, true));
    assert!(trace.frames.len() >= 1000);
    assert!(
        trace.frames[1..]
            .iter()
            .all(|frame| frame.name() == "down" && frame.arguments == ["int"]),
        "{trace:?}"
    );
    assert_eq!((trace.frames[1].line, trace.frames[2].line), (Some(3), Some(4)));
}

/// Who may call whom; everything else is a stack that never was.
const CALLERS: &[(&str, &[&str])] = &[
    ("{main}", &[]),
    ("T::fib", &["{main}", "T::fib"]),
    ("T::middle", &["{main}"]),
    ("T::leaf", &["T::middle"]),
    ("str_repeat", &["T::leaf"]),
    ("array_map", &["T::middle"]),
    ("array_sum", &["T::middle"]),
    ("T::{closure}", &["array_map"]),
    ("T::generate", &["T::middle"]),
];

fn busy() {
    let place = Place::new();
    place.write(
        "busy.php",
        "<?php\nclass T {\n  static function fib($n) { return $n < 2 ? $n : self::fib($n - 1) + self::fib($n - 2); }\n\
         function leaf($x) { return strlen(str_repeat('a', $x % 50)); }\n\
         function generate() { yield 1; yield 2; }\n\
         function middle($i) { foreach ($this->generate() as $x);\n\
           return $this->leaf($i) + array_sum(array_map(fn($v) => $v * 2, [1, 2, 3])); }\n}\n\
         set_time_limit(0); $o = new T; while (true) { T::fib(8); for ($i = 0; $i < 50; $i++) $o->middle($i); }",
    );
    place.configure(&pool(1, ""));
    let master = place.serve_with(1);
    let worker = master.workers("www")[0];
    let mut connection = master.connect("sock");
    master.ask(&mut connection, "/busy.php", 0);
    wait_for("the script to run", || {
        look(worker, 64).is_ok_and(|trace| !trace.frames.is_empty())
    });
    let (mut deepest, mut unsteady) = (0, 0);
    const LOOKS: usize = 2000;
    let give_up = Instant::now() + PATIENCE;
    for number in 0.. {
        if number >= LOOKS {
            if deepest > 4 || Instant::now() > give_up {
                break;
            }
            // A busy machine has let the worker stand all the time.
            std::thread::sleep(Duration::from_millis(1));
        }
        let trace = look(worker, 64).unwrap();
        unsteady += usize::from(!trace.steady && number < LOOKS);
        deepest = deepest.max(trace.frames.len());
        let named = |name: String| match name.strip_prefix("T::{closure") {
            Some(_) => "T::{closure}".to_owned(),
            None => name,
        };
        let names: Vec<String> = trace.frames.iter().map(|frame| named(frame.name())).collect();
        if trace.steady {
            assert_eq!(names.last().map(String::as_str), Some("{main}"), "{names:?}");
        }
        for pair in names.windows(2) {
            let callers = CALLERS
                .iter()
                .find(|(name, _)| *name == pair[0])
                .map(|(_, callers)| *callers);
            assert!(
                callers.is_some_and(|callers| callers.contains(&pair[1].as_str())),
                "{names:?}"
            );
        }
    }
    assert!(deepest > 4, "the stack was never deeper than {deepest}");
    assert!(
        unsteady < LOOKS / 20,
        "{unsteady} of {LOOKS} looks found no steady stack"
    );
}

fn idle() {
    let place = Place::new();
    place.write("hello.php", "<?php echo 'hello';");
    place.configure(&pool(1, ""));
    let master = place.serve_with(1);
    assert_eq!(master.get("/hello.php"), "hello");
    let worker = master.workers("www")[0];
    wait_for("the end of the request", || look(worker, 64).unwrap().request.is_none());
    assert_eq!(look(worker, 64).unwrap().frames, []);
    // Neither the master nor the zygote is a worker.
    for (pid, name) in [(master.pid(), "master"), (master.zygote("www"), "zygote")] {
        let error = look(pid, 64).unwrap_err().to_string();
        assert_eq!(error, format!("process {pid} is no worker of php-pool"), "{name}");
    }
    let output = run(&["trace", &worker.to_string()]);
    assert_eq!(
        (output.status.code(), printed(&output)),
        (Some(0), format!("{worker}: no request\n"))
    );
}

fn command() {
    let place = Place::new();
    place.write(
        "call.php",
        "<?php\nclass C {\n  function m(int $a, $b, C $c, &...$more) { sleep(60); }\n}\n$x = 1.5; (new C)->m(1, [], new C, $x);",
    );
    place.configure(&pool(1, ""));
    let control = place.path("control");
    let master = place.serve_with(1);
    let mut connection = master.connect("sock");
    master.ask(&mut connection, "/call.php?a=%0A&b", 0);
    let worker = master.workers("www")[0];
    let script = master.place.path("call.php").display().to_string();
    let wanted = format!(
        "{worker}: GET /call.php?a=%0A&b  {script}\n#0 {script}(3): sleep(int)\n#1 {script}(5): C::m(int, array, C, ...)\n#2 {{main}}\n"
    );
    for pid in [worker, master.pid()] {
        let mut seen = String::new();
        wait_for("the script to sleep", || {
            seen = printed(&run(&["trace", &pid.to_string()]));
            seen.contains("sleep(")
        });
        assert_eq!(seen, wanted);
    }
    let cut = printed(&run(&["trace", "--depth", "1", &worker.to_string()]));
    assert!(
        cut.ends_with("sleep(int)\n(more frames are left out; see --depth)\n"),
        "{cut}"
    );
    let json: serde_json::Value =
        serde_json::from_slice(&run(&["trace", "--json", &worker.to_string()]).stdout).unwrap();
    assert_eq!(json[0]["backtrace"]["frames"][1]["function"], "m");
    assert_eq!(json[0]["backtrace"]["end"], "complete");

    let missing = run(&["trace", "--control", control.to_str().unwrap()]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(printed(&missing).contains("nothing runs at"), "{}", printed(&missing));
    let gone = run(&["trace", &i32::MAX.to_string()]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(printed(&gone).contains("is a worker of php-pool"), "{}", printed(&gone));
}
