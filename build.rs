//! Compiles the shim against the PHP that `PHP_CONFIG` names (default: the newest `php-config*` in PATH) and links it, and
//! libphp, to the worker alone.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-env-changed=PHP_CONFIG");
    println!("cargo::rerun-if-changed=src/worker/php");
    let config = env::var_os("PHP_CONFIG")
        .map(PathBuf::from)
        .or_else(newest_php_config)
        .unwrap_or_else(|| {
            panic!("there is no php-config here: install php8.2-dev and libphp8.2-embed, or name one by PHP_CONFIG")
        });
    let ask = |option: &str| {
        let output = Command::new(&config)
            .arg(option)
            .output()
            .unwrap_or_else(|e| panic!("{}: {e}", config.display()));
        assert!(output.status.success(), "{} {option} failed", config.display());
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    let version = ask("--version");
    let short: String = version.split('.').take(2).collect::<Vec<_>>().join(".");
    println!("cargo::rustc-env=PHP_POOL_PHP_VERSION={short}");

    let mut build = cc::Build::new();
    build
        .files(
            [
                "shim.c",
                "aside.c",
                "body.c",
                "directory_ini.c",
                "heap.c",
                "trace_layout.c",
            ]
            .map(|file| format!("src/worker/php/{file}")),
        )
        .pic(true)
        .std("gnu11")
        .define("_GNU_SOURCE", None)
        .cargo_metadata(false);
    build.define(
        "PHP_POOL_VERSION",
        format!("\"{}\"", env!("CARGO_PKG_VERSION")).as_str(),
    );
    build.flag("-Wno-unused-parameter");
    for flag in ask("--includes").split_whitespace() {
        // As system headers, so that only our own code is warned about.
        build.flag(format!("-isystem{}", flag.trim_start_matches("-I")));
    }
    let mut arguments: Vec<String> = build
        .compile_intermediates()
        .iter()
        .map(|object| object.display().to_string())
        .collect();
    let prefix = PathBuf::from(ask("--prefix"));
    let library = find_library(&prefix, &short).unwrap_or_else(|| {
        panic!(
            "there is no libphp for PHP {short} below {}: install libphp{short}-embed",
            prefix.display()
        )
    });
    let (folder, name) = nameless_copy(&library);
    arguments.extend([format!("-L{}", folder.display()), format!("-l:{name}")]);
    // Without this the executable would get a copy of PHP's globals, of a size frozen at link time.
    arguments.push("-Wl,-z,nocopyreloc".to_owned());
    // Extensions are to find ours, as libphp does by itself.
    arguments.push("-Wl,--export-dynamic-symbol=fchdir".to_owned());
    for argument in arguments {
        println!("cargo::rustc-link-arg-bin=php-pool-worker={argument}");
    }
}

fn newest_php_config() -> Option<PathBuf> {
    let version = |path: &Path| -> Vec<u32> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.trim_start_matches("php-config")
            .split('.')
            .filter_map(|part| part.parse().ok())
            .collect()
    };
    env::split_paths(&env::var_os("PATH")?)
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("php-config"))
        })
        .max_by_key(|path| version(path))
}

fn find_library(prefix: &Path, short: &str) -> Option<PathBuf> {
    let folders = ["lib", "lib/x86_64-linux-gnu", "lib/aarch64-linux-gnu", "lib64"];
    let names = [format!("libphp{short}.so"), "libphp.so".to_owned()];
    names.iter().find_map(|name| {
        folders
            .iter()
            .map(|folder| prefix.join(folder).join(name))
            .find(|path| path.exists())
    })
}

/// A copy of the library without its SONAME, to link against: its folder and its name.
///
/// Every version's library calls itself `libphp.so`, and the worker would load whichever of them that link leads to. Without
/// a SONAME the linker notes the file's own name, `libphp8.2.so`.
fn nameless_copy(library: &Path) -> (PathBuf, String) {
    const PT_DYNAMIC: u32 = 2;
    const DT_NULL: u64 = 0;
    const DT_SONAME: u64 = 14;
    // In the range that belongs to the operating system, and without a meaning: the linker passes over it.
    const DT_IGNORED: u64 = 0x6ff0_0000;

    let real = fs::canonicalize(library).unwrap_or_else(|e| panic!("{}: {e}", library.display()));
    let mut bytes = fs::read(&real).unwrap_or_else(|e| panic!("{}: {e}", real.display()));
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    assert!(
        bytes.starts_with(b"\x7fELF\x02\x01"),
        "{} is no 64-bit little-endian ELF file",
        real.display()
    );
    let headers = word(&bytes, 32) as usize;
    let count = usize::from(u16::from_le_bytes([bytes[56], bytes[57]]));
    let header = (0..count)
        .map(|index| headers + index * 56)
        .find(|at| bytes[*at..at + 4] == PT_DYNAMIC.to_le_bytes())
        .unwrap_or_else(|| panic!("{} has no dynamic section", real.display()));
    let mut at = word(&bytes, header + 8) as usize;
    while word(&bytes, at) != DT_NULL {
        if word(&bytes, at) == DT_SONAME {
            bytes[at..at + 8].copy_from_slice(&DT_IGNORED.to_le_bytes());
        }
        at += 16;
    }
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let name = real
        .file_name()
        .expect("a file has a name")
        .to_string_lossy()
        .into_owned();
    fs::write(folder.join(&name), bytes).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    (folder, name)
}
