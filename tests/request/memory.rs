//! The memory of scripts: what they may have, and what becomes of it.

use crate::harness::{Case, Cases, wait_until};
use crate::support::server::Setup;

static ONE_WORKER: Setup = Setup {
    name: "memory-one-worker",
    workers: 1,
    pool: "php_admin_value[memory_limit] = 200M\n",
    ..Setup::BASE
};

static LARGE: Setup = Setup {
    name: "memory-large",
    workers: 1,
    pool: "php_admin_value[memory_limit] = 600M\n",
    ..Setup::BASE
};

/// Writes into every page of what it takes, and counts the faults.
const FAULTS: &str = "function faults() { return getrusage()['ru_minflt']; }
    $before = faults(); $large = str_repeat('x', 20 << 20); unset($large); echo faults() - $before > 1000 ? 'faults' : 'none';";

pub fn cases() -> Vec<Case> {
    Cases::of("memory", |c| {
        c.same("what_is_taken_and_given_back_is_whole_and_counted", &LARGE, |t| {
            // Pieces of all sizes, in an order that leaves holes; strings that grow and shrink where they are.
            let request = t.page(
                "mt_srand((int) $_GET['seed']); $have = [];
                 for ($i = 0; $i < 250; $i++) {
                     $at = mt_rand(0, 15);
                     if (isset($have[$at])) {
                         [$letter, $size] = $have[$at][0];
                         if (strlen($have[$at][1]) !== $size || trim($have[$at][1], $letter) !== '') echo \"torn at $i\\n\";
                         if (mt_rand(0, 2) === 0) {
                             $more = mt_rand(0, 3000000); $have[$at][1] .= str_repeat($letter, $more); $have[$at][0][1] += $more;
                         } else unset($have[$at]);
                     } else {
                         $letter = chr(97 + $i % 26); $size = mt_rand(1, mt_rand(0, 4) === 0 ? 40000000 : 3000000);
                         $have[$at] = [[$letter, $size], str_repeat($letter, $size)];
                     }
                     if ($i % 25 === 0) echo intdiv(memory_get_usage(), 1 << 20), ' ';
                 }
                 $have = null; echo intdiv(memory_get_usage(), 1 << 20), ' ', intdiv(memory_get_peak_usage(), 1 << 20), ' ', gc_mem_caches() >= 0;",
            );
            for seed in 0..6 {
                let text = t.send(&request.clone().query(&format!("seed={seed}"))).text();
                assert!(!text.contains("torn"), "{text}");
            }
        });
        c.same("the_limit_is_where_it_was", &ONE_WORKER, |t| {
            for greedy in ["str_repeat('x', 7 << 20)", "new stdClass"] {
                let reply = t.php(&format!("$all = []; while (true) $all[] = {greedy};"));
                let said = String::from_utf8_lossy(&reply.stderr);
                assert!(
                    said.contains("Allowed memory size of 209715200 bytes exhausted"),
                    "{said}"
                );
            }
            assert_eq!(
                t.php("echo memory_get_usage() < (4 << 20) ? 'little' : 'much';").text(),
                "little"
            );
        });
        c.same("more_than_a_worker_ever_keeps", &LARGE, |t| {
            let text = t.php(
                "$all = []; for ($i = 0; $i < 5; $i++) $all[] = str_repeat(chr(97 + $i), 90 << 20);
                 foreach ($all as $one) echo strspn($one, $one[0]), ' ';",
            );
            assert_eq!(text.text(), "94371840 ".repeat(5));
        });
        c.same("a_child_of_a_script_has_memory_of_its_own", &ONE_WORKER, |t| {
            // Debian's php-fpm has no pcntl.
            let request = t.page(
                "$mine = str_repeat('p', 5 << 20);
                 if (!function_exists('pcntl_fork')) exit('5242880');
                 if (($child = pcntl_fork()) === 0) { $mine = str_repeat('c', 5 << 20); $more = str_repeat('d', 9 << 20); posix_kill(getmypid(), 9); }
                 pcntl_waitpid($child, $status); echo trim($mine, 'p'), strlen($mine);",
            );
            for _ in 0..3 {
                assert_eq!(t.send(&request).text(), "5242880");
            }
        });
        c.differs(
            "large_pieces_of_memory_are_there_for_the_next_request",
            &ONE_WORKER,
            "Memory in pieces of 2 MB and more that a script gives back stays with its worker, up to 32 MB, while requests follow one \
             another; php-fpm gives it to the kernel at once, and the next script pays for every 4 KB of it again.",
            |t| {
                let request = t.page(FAULTS);
                t.send_unrecorded(&request);
                let mut seen = "";
                // The worker may have been idle for a moment in between, when the machine is slow.
                for _ in 0..20 {
                    seen = if t.send_unrecorded(&request).text() == "none" { "none" } else { "faults" };
                    if seen == "none" {
                        break;
                    }
                }
                t.note(seen);
                assert_eq!(seen, if t.is_php_pool() { "none" } else { "faults" });
            },
        )
        .alone();
        c.same("an_idle_worker_keeps_no_memory_that_is_free", &ONE_WORKER, |t| {
            let pid = t.page("$large = str_repeat('x', 30 << 20); echo getmypid();");
            let pid = t.send_unrecorded(&pid).text();
            wait_until("the memory is free", || {
                let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the worker lives");
                let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
                let kb: u64 = line
                    .expect("a size")
                    .trim()
                    .trim_end_matches(" kB")
                    .parse()
                    .expect("a number");
                kb < 20 << 10
            });
        })
        .alone();
    })
}
