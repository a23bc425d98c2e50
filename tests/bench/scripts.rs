//! The scripts that are measured.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

const CLASSES: usize = 150;
const SECTIONS: usize = 5;

/// Writes all scripts into `www`.
pub fn write(www: &Path) -> io::Result<()> {
    let script = |name: &str, text: &str| fs::write(www.join(name), format!("<?php\n{text}\n"));
    fs::create_dir_all(www)?;
    script("hello.php", "echo \"Hello, world!\\n\";")?;
    script("output.php", "echo str_repeat('0123456789abcdef', 1 << 16);")?;
    script(
        "post.php",
        "echo 'fields: ', count($_POST), ' ', array_sum(array_map('strlen', $_POST));",
    )?;
    script("upload.php", "echo 'size: ', $_FILES['file']['size'];")?;
    script(
        "cpu.php",
        "$sieve = array_fill(2, 100000 - 2, true);
for ($i = 2; $i * $i < 100000; $i++) if ($sieve[$i]) for ($j = $i * $i; $j < 100000; $j += $i) $sieve[$j] = false;
echo 'primes: ', count(array_filter($sieve));",
    )?;
    json(www)?;
    classes(www)
}

/// Data of a kind that applications serve, in files of their own.
fn json(www: &Path) -> io::Result<()> {
    let mut main = String::from("<?php\nheader('Content-Type: application/json');\n$all = [];\n");
    for section in 0..SECTIONS {
        let mut part = format!("<?php\nreturn ['section' => {section}, 'rows' => [\n");
        for row in 0..40 {
            writeln!(
                part,
                "['id' => {row}, 'name' => 'Item {row} of section {section}', 'price' => {}.5, 'tags' => ['a', 'b'], \
                 'active' => true, 'at' => date('Y-m-d', {row} * 86400)],",
                row * 3
            )
            .expect("into a String");
        }
        fs::write(www.join(format!("section{section}.php")), part + "]];\n")?;
        writeln!(main, "$all[] = require __DIR__ . '/section{section}.php';").expect("into a String");
    }
    fs::write(www.join("json.php"), main + "echo json_encode($all);\n")
}

/// As many classes as a request of a framework loads, each in its file, by an autoloader.
fn classes(www: &Path) -> io::Result<()> {
    let folder = www.join("classes");
    fs::create_dir_all(&folder)?;
    for n in 0..CLASSES {
        let mut class = format!(
            "<?php\nnamespace App\\Part{};\n\nfinal class Service{n}\n{{\n    private array $options = ['a' => 1];\n\n    \
             public function __construct(private int $number = {n}) {{}}\n\n    public function number(): int\n    {{\n        \
             return $this->number;\n    }}\n",
            n % 10
        );
        for method in 0..12 {
            write!(
                class,
                "\n    public function method{method}(string $name, ?int $count = null): array\n    {{\n        \
                 if ($count === null) {{\n            $count = strlen($name) + {method};\n        }}\n        \
                 return array_fill(0, $count, $this->options[$name] ?? $name);\n    }}\n"
            )
            .expect("into a String");
        }
        fs::write(folder.join(format!("Service{n}.php")), class + "}\n")?;
    }
    fs::write(
        www.join("classes.php"),
        format!(
            "<?php
spl_autoload_register(function (string $class) {{
    require __DIR__ . '/classes/' . substr($class, strrpos($class, '\\\\') + 1) . '.php';
}});
$sum = 0;
for ($n = 0; $n < {CLASSES}; $n++) {{
    $class = 'App\\\\Part' . ($n % 10) . '\\\\Service' . $n;
    $sum += (new $class)->number();
}}
echo 'sum: ', $sum;
"
        ),
    )
}
