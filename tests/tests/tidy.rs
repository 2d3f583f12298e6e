//! Rules about the sources that a machine can hold: which crate may know which, where `unsafe` may stand, what every
//! file begins with, that documents and code name the same things.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use tests::{imports, root};
use toml::{Table, Value};

/// Crates, and which of the others each may depend on.
const MAY_DEPEND_ON: [(&str, &[&str]); 12] = [
    ("kernels", &[]),
    ("loader", &["untested"]),
    ("loader/tensors", &["loader"]),
    ("loader/ingest", &["loader", "tensors"]),
    ("loader/harvest", &["kernels", "loader", "tensors"]),
    ("trainer", &["kernels", "loader", "tensors", "page"]),
    ("trainer/page", &[]),
    ("trainer/scaling", &["page"]),
    ("launch", &["trainer", "scaling", "kernels", "loader", "harvest", "ingest"]),
    ("tests", &["kernels", "loader", "trainer", "scaling", "launch", "benchmarks", "untested"]),
    ("benchmarks", &["kernels", "loader", "trainer", "launch", "tests"]),
    ("untested", &[]),
];

/// Dependencies that give access to a GPU: they belong to `kernels`.
const GPU_CRATES: [&str; 4] = ["cudarc", "cust", "nccl", "wgpu"];

/// The operations of a step: each names its CPU version, its test and its benchmark.
const STEMS: [&str; 8] = ["normalize", "encode", "decode", "residual", "backward", "count", "adam", "dense"];

/// Longest source file, in lines.
const MOST_LINES: usize = 600;

/// The name of the package in a folder.
fn package(folder: &str) -> &str {
    folder.rsplit('/').next().unwrap_or(folder)
}

#[test]
fn crates_depend_in_one_direction() {
    for (name, allowed) in MAY_DEPEND_ON {
        let manifest = manifest(name);
        for dependency in dependencies(&manifest) {
            if MAY_DEPEND_ON.iter().any(|(known, _)| package(known) == dependency) {
                assert!(allowed.contains(&dependency.as_str()), "{name} depends on {dependency}");
            }
            assert!(
                name == "kernels" || name == "benchmarks" || !GPU_CRATES.contains(&dependency.as_str()),
                "{name} depends on {dependency}: GPUs belong to kernels"
            );
        }
    }
    let workspace = manifest(".");
    let members: BTreeSet<&str> =
        workspace["workspace"]["members"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    assert_eq!(members, MAY_DEPEND_ON.iter().map(|(name, _)| *name).collect(), "members of the workspace");
}

#[test]
fn only_kernels_may_hold_unsafe_code() {
    assert_eq!(manifest(".")["workspace"]["lints"]["rust"]["unsafe_code"].as_str(), Some("forbid"));
    for (name, _) in MAY_DEPEND_ON.iter().filter(|(name, _)| *name != "kernels") {
        let lints = &manifest(name)["lints"];
        assert_eq!(lints["workspace"].as_bool(), Some(true), "{name} takes the lints of the workspace");
    }
    // Each block in kernels names the check above it; clippy's lint does not see blocks that macros make.
    for path in sources().filter(|path| path.starts_with(root().join("kernels/src"))) {
        let text = read(&path);
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| line.contains(concat!("unsa", "fe {"))) {
            let above = lines[at.saturating_sub(8)..=at].iter().any(|line| line.contains("SAFETY:"));
            assert!(above, "{}:{}: {line}: no SAFETY comment", path.display(), at + 1);
        }
    }
}

#[test]
fn every_source_file_has_a_head_and_a_bearable_length() {
    for path in sources().chain(files(&["cu", "cuh", "cpp", "h"])) {
        let text = read(&path);
        let head = if path.extension().is_some_and(|extension| extension == "rs") { "//! " } else { "// " };
        assert!(text.starts_with(head), "{} does not begin with a {head}that says what it is", path.display());
        let lines = text.lines().count();
        assert!(lines <= MOST_LINES, "{} has {lines} lines, more than {MOST_LINES}", path.display());
    }
}

#[test]
fn nothing_unfinished_and_no_path_of_one_machine() {
    let unfinished = [concat!("todo", "!("), concat!("unimplemented", "!("), concat!("TO", "DO"), concat!("FIX", "ME")];
    let machine = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
    for path in files(&["rs", "md", "toml", "py", "sh", "yml", "json"]) {
        let text = read(&path);
        for (at, line) in text.lines().enumerate() {
            let found = unfinished.iter().chain(&machine).find(|word| line.contains(**word));
            assert_eq!(found, None, "{}:{}: {line}", path.display(), at + 1);
        }
    }
}

/// Crates whose documentation has examples that run. Cargo runs them behind the count of what was skipped, so none may skip.
const HAS_EXAMPLES: [&str; 3] = ["kernels", "loader", "trainer"];

/// Whatever says that it was skipped is counted where a run ends, and what cargo runs behind that count skips nothing.
#[test]
fn nothing_is_skipped_uncounted() {
    for path in sources().filter(|path| !path.starts_with(root().join("untested"))) {
        let text = read(&path);
        assert!(!text.contains(concat!("\"SKIP", "PED")), "{} skips without untested::skip", path.display());
        let comments: Vec<&str> = text
            .lines()
            .map(str::trim_start)
            .filter(|line| line.starts_with("///") || line.starts_with("//!"))
            .collect();
        let fences: Vec<&str> = comments.iter().filter_map(|line| line[3..].trim_start().strip_prefix("```")).collect();
        let runs = HAS_EXAMPLES.iter().any(|name| path.starts_with(root().join(name).join("src")));
        let refused = |fence: &&&str| **fence != "text" && !(runs && fence.is_empty());
        assert_eq!(
            fences.iter().step_by(2).find(refused),
            None,
            "{}: this example in comments is not run: make it a test, or mark it as text",
            path.display()
        );
        let skips = comments.iter().find(|line| line.contains("untested::"));
        assert_eq!(skips, None, "{}: an example that skips is not counted", path.display());
    }
    for (name, _) in MAY_DEPEND_ON.iter().filter(|(name, _)| root().join(name).join("src/lib.rs").exists()) {
        let doctest = manifest(name).get("lib").and_then(|lib| lib.get("doctest")?.as_bool());
        let wanted = if HAS_EXAMPLES.contains(name) { None } else { Some(false) };
        assert_eq!(doctest, wanted, "{name}: only what has examples that skip nothing runs behind the count");
    }
    let last = MAY_DEPEND_ON.iter().map(|(name, _)| package(name)).max();
    assert_eq!(last, Some("untested"), "cargo runs test binaries in the order of packages' names");
}

#[test]
fn links_in_documents_lead_somewhere() {
    let documents: Vec<PathBuf> = files(&["md"]).collect();
    assert!(documents.iter().any(|path| path.ends_with("README.md")), "there is a README.md");
    for path in documents {
        for link in links(&read(&path)) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let folder = path.parent().expect("a file lies in a folder");
            let target = if file.is_empty() { path.clone() } else { folder.join(file) };
            assert!(target.exists(), "{}: {link} leads nowhere", path.display());
            if !anchor.is_empty() && target.extension().is_some_and(|extension| extension == "md") {
                assert!(anchors(&read(&target)).contains(anchor), "{}: {link}: no such heading", path.display());
            }
        }
    }
}

/// A newcomer looks there for the one to run.
#[test]
fn every_test_binary_stands_in_the_table() {
    let table = links(&read(&root().join("CONTRIBUTING.md")));
    for (name, _) in MAY_DEPEND_ON.iter().filter(|(name, _)| *name != "untested") {
        let Ok(folder) = fs::read_dir(root().join(name).join("tests")) else { continue };
        let binaries = folder.map(|entry| entry.expect("a folder").file_name().to_string_lossy().into_owned());
        for binary in binaries.filter(|file| file.ends_with(".rs")) {
            let path = format!("{name}/tests/{binary}");
            assert!(table.contains(&path), "CONTRIBUTING.md does not say what {path} holds");
        }
    }
}

/// The table in launch/recipes/README.md has a row for each key of the recipe, with its default, and no others.
#[test]
fn every_recipe_key_is_documented_with_its_default() {
    let documented = documented_keys();
    let known = recipe_keys();
    let missing: Vec<_> = known.iter().filter(|key| !documented.contains_key(*key)).collect();
    assert!(missing.is_empty(), "launch/recipes/README.md lacks {missing:?}");
    let stale: Vec<_> = documented.keys().filter(|key| !known.contains(*key)).collect();
    assert!(stale.is_empty(), "launch/recipes/README.md describes keys that do not exist: {stale:?}");

    let text = "[data]\ntrain = \"x\"\n[data.synth]\n[sae]\nfeatures = 1\n[train]\n[run]\ndir = \"x\"\n";
    let minimal: trainer::recipe::Recipe = toml::from_str(text).expect("a recipe of nothing but what must be given");
    let full: Table = minimal.to_toml().parse().expect("a recipe writes TOML");
    let mut defaults = BTreeMap::new();
    flatten("", &Value::Table(full), &mut defaults);
    for required in ["data.train", "sae.features", "run.dir"] {
        defaults.remove(required);
    }
    for (key, default) in defaults {
        let cell = documented[&key].trim().trim_matches('`').trim_matches('"').to_owned();
        let same = match (cell.parse::<f64>(), as_number(&default)) {
            (Ok(cell), Some(default)) => cell as f32 == default as f32,
            _ => default.as_str().map_or(default.to_string(), str::to_owned) == cell,
        };
        assert!(same, "launch/recipes/README.md says that {key} is {cell} by default; it is {default}");
    }
}

#[test]
fn an_operation_has_one_name_everywhere() {
    let cases = tests::cases::all::<kernels::cpu::Cpu>();
    let operations = read(&root().join("benchmarks/src/planted.rs"));
    let step = read(&root().join("benchmarks/benches/step.rs"));
    for stem in STEMS {
        for file in [
            format!("kernels/src/cpu/ops/{stem}.rs"),
            format!("kernels/src/cuda/ops/{stem}.rs"),
            format!("kernels/cuda/{stem}.cu"),
        ] {
            assert!(root().join(&file).exists(), "no {file}");
        }
        let of_operation = format!("{stem}: ");
        assert!(
            cases.iter().any(|(name, _)| name.starts_with(&of_operation)),
            "no case of {stem} in tests/src/cases.rs"
        );
        // What the bench `operations` prints by its name, and `step` both paths.
        let of_benchmark = format!("=> \"{stem}\",");
        let is_measured = operations.contains(&of_benchmark) || step.contains(&format!("\"{stem}_us\""));
        assert!(is_measured, "no benchmark of {stem}");
    }
}

/// A reader of one finds the other by its name.
#[test]
fn kernels_and_their_launchers_share_a_stem() {
    let launchers: BTreeSet<PathBuf> =
        files(&["rs"]).filter(|path| path.starts_with(root().join("kernels/src/cuda"))).collect();
    for kernel in files(&["cu"]).filter(|path| path.starts_with(root().join("kernels"))) {
        let stem = kernel.file_stem();
        assert!(launchers.iter().any(|path| path.file_stem() == stem), "nothing launches {}", kernel.display());
    }
}

/// Words that nobody else in the field uses, where it has one: CONTRIBUTING.md has a table of those.
const PRIVATE_WORDS: [&str; 18] = [
    "/// all of it.",
    "/// as there.",
    "befall",
    "book",
    "by chance",
    "card",
    "guest",
    "in what numbers",
    "is told",
    "lap(",
    "laps",
    "line of metrics ",
    "lines of metrics ",
    "nobody looks",
    "reckon",
    "stranger",
    "the first to go",
    "whoever",
];

/// What was made and what is quoted keeps its words; so does this file, which has them all.
#[test]
fn the_words_are_those_of_the_field() {
    let exempt = ["CHANGELOG.md", "benchmarks/runs", "tests/tests/tidy.rs", "LICENSE"].map(|path| root().join(path));
    let mut found = Vec::new();
    for path in files(&["rs", "cu", "cuh", "cpp", "h", "md", "py", "sh", "toml"]) {
        if exempt.iter().any(|exempt| path.starts_with(exempt)) {
            continue;
        }
        let text = read(&path).to_lowercase();
        for word in PRIVATE_WORDS {
            let alone = |at: usize| !text[..at].ends_with(|c: char| c.is_alphabetic());
            // Words of other things that begin so.
            let other = |at: usize| ["cardinal", "bookworm", "lapse"].iter().any(|other| text[at..].starts_with(other));
            if let Some((at, _)) = text.match_indices(word).find(|(at, _)| alone(*at) && !other(*at)) {
                let line = text[..at].lines().count();
                found.push(format!("{}:{line}: {word}", path.strip_prefix(root()).unwrap_or(&path).display()));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// Where a file reaches back to one that uses it, neither can be read first.
#[test]
fn files_use_each_other_in_one_direction() {
    for name in [
        "kernels",
        "loader",
        "loader/tensors",
        "loader/ingest",
        "loader/harvest",
        "trainer",
        "trainer/page",
        "trainer/scaling",
        "launch",
        "tests",
        "benchmarks",
    ] {
        let circles = imports::circles(&root().join(name).join("src"));
        assert!(circles.is_empty(), "{name}: {circles:?}");
    }
}

/// What is named for a recipe or a command line is theirs: below them a fact is stated, and they add how it is said.
#[test]
fn lower_crates_name_no_key_and_no_flag() {
    let keys: Vec<String> = recipe_keys().into_iter().filter(|key| key.contains('.')).collect();
    let mut flags: BTreeSet<String> = BTreeSet::new();
    for path in sources().filter(|path| path.starts_with(root().join("launch/src"))) {
        let text = read(&path);
        let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '-'));
        flags.extend(words.filter(|word| word.len() > 4 && word.starts_with("--")).map(str::to_owned));
    }
    assert!(flags.contains("--resume") && keys.iter().any(|key| key == "train.batch"), "{flags:?}, {keys:?}");
    let mut found = Vec::new();
    for path in sources() {
        let of = |name: &str| path.starts_with(root().join(name).join("src"));
        let no_keys = [
            "kernels",
            "loader",
            "loader/tensors",
            "loader/ingest",
            "loader/harvest",
            "trainer/page",
            "trainer/scaling",
        ]
        .into_iter()
        .any(of);
        let no_flags = no_keys || of("trainer");
        let text = read(&path);
        let lines = text.lines().take_while(|line| line.trim() != "mod tests {").enumerate();
        for (at, line) in lines.filter(|(_, line)| !line.trim_start().starts_with("//")) {
            let names = |word: &str| {
                let inside = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
                line.match_indices(word).any(|(start, _)| {
                    !line[..start].ends_with(inside) && !line[start + word.len()..].starts_with(inside)
                })
            };
            let named_key = no_keys && keys.iter().any(|key| names(key));
            // Commands of AWS's own tools have flags of theirs.
            let no_flags = no_flags && !line.contains("aws sso");
            if named_key || (no_flags && flags.iter().any(|flag| names(flag))) {
                found.push(format!("{}:{}: {}", path.display(), at + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_changelog_knows_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    let changelog = read(&root().join("CHANGELOG.md"));
    assert!(
        changelog.lines().any(|line| line.starts_with("## ") && line.contains(version)),
        "no heading for {version}"
    );
}

/// Every file of the checkout with one of the extensions, builds and downloaded things aside.
fn files(extensions: &[&str]) -> impl Iterator<Item = PathBuf> {
    let made: Vec<PathBuf> = ["target", "data", "runs", "shared"].iter().map(|name| root().join(name)).collect();
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("the checkout can be read").flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            let hidden = name.starts_with('.') && name != ".ci" && name != ".github";
            if path.is_dir() {
                if !hidden && name != "__pycache__" && !made.contains(&path) {
                    folders.push(path);
                }
            } else if extensions.iter().any(|extension| name.ends_with(&format!(".{extension}"))) {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty(), "no {extensions:?} files");
    found.sort();
    found.into_iter()
}

fn sources() -> impl Iterator<Item = PathBuf> {
    files(&["rs"])
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn manifest(name: &str) -> Table {
    read(&root().join(name).join("Cargo.toml")).parse().expect("Cargo.toml is TOML")
}

/// Names under every `dependencies` table of a manifest, those of targets and builds included.
fn dependencies(manifest: &Table) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut tables = vec![manifest];
    while let Some(table) = tables.pop() {
        for (key, value) in table {
            let Some(inner) = value.as_table() else { continue };
            if key.ends_with("dependencies") {
                names.extend(inner.keys().cloned());
            } else {
                tables.push(inner);
            }
        }
    }
    names
}

/// Targets of `[text](target)`, code aside.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    let mut in_block = false;
    for line in text.lines() {
        in_block ^= line.trim_start().starts_with("```");
        if in_block {
            continue;
        }
        // Every other part between backticks is code.
        for prose in line.split('`').step_by(2) {
            for after in prose.split("](").skip(1) {
                links.extend(after.split_once(')').map(|(target, _)| target.to_owned()));
            }
        }
    }
    links
}

/// The anchors of a document's headings, as they are made when it is shown.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    headings
        .map(|heading| {
            let kept = heading.to_lowercase();
            kept.chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
                .map(|c| if c == ' ' { '-' } else { c })
                .collect()
        })
        .collect()
}

/// `| `key` | unit | default | …` → key → default.
fn documented_keys() -> BTreeMap<String, String> {
    let text = read(&root().join("launch/recipes/README.md"));
    text.lines()
        .filter_map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let key = cells.get(1)?.strip_prefix('`')?.strip_suffix('`')?;
            (cells.len() >= 6 && key.contains('.')).then(|| (key.to_owned(), cells[3].to_owned()))
        })
        .collect()
}

/// `section.key` of every field of the recipe's structs, read from the sources: optional keys have no value to find.
fn recipe_keys() -> BTreeSet<String> {
    let mut structs = fields(&read(&root().join("trainer/src/recipe.rs")));
    let parts = ["loader/src/make/synth/spec.rs", "trainer/src/data/filter.rs"];
    structs.extend(parts.iter().flat_map(|file| fields(&read(&root().join(file)))));
    let mut keys = BTreeSet::new();
    let mut open = vec![(String::new(), "Recipe".to_owned())];
    while let Some((prefix, name)) = open.pop() {
        for (field, kind) in &structs[&name] {
            let key = if prefix.is_empty() { field.clone() } else { format!("{prefix}.{field}") };
            let inner =
                kind.trim_start_matches("Option<").trim_end_matches('>').rsplit("::").next().unwrap_or_default();
            if structs.contains_key(inner) {
                open.push((key, inner.to_owned()));
            } else {
                keys.insert(key);
            }
        }
    }
    keys
}

/// The public structs of a source file with their public fields and types.
fn fields(source: &str) -> BTreeMap<String, Vec<(String, String)>> {
    let mut structs = BTreeMap::new();
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        let Some(name) = line.strip_prefix("pub struct ").and_then(|rest| rest.strip_suffix(" {")) else { continue };
        let body = lines.by_ref().take_while(|line| *line != "}");
        let pairs = body
            .filter_map(|line| line.trim().strip_prefix("pub ")?.trim_end_matches(',').split_once(": "))
            .map(|(field, kind)| (field.to_owned(), kind.to_owned()));
        structs.insert(name.to_owned(), pairs.collect());
    }
    structs
}

fn flatten(prefix: &str, value: &Value, out: &mut BTreeMap<String, Value>) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                flatten(&if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") }, value, out);
            }
        }
        leaf => {
            out.insert(prefix.to_owned(), leaf.clone());
        }
    }
}

fn as_number(value: &Value) -> Option<f64> {
    value.as_float().or(value.as_integer().map(|integer| integer as f64))
}
