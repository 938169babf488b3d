//! The house rules that no compiler knows: who may see whom, what stays pure, and how long a file may be without an excuse.
//!
//! Reads the source as text. A line that breaks a rule is printed as `file:line: text`. Longer than other files: one rule after another.
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use lamina::api::Reason;

/// Who may see whom: a room, and what its files may name after `crate::`. A room that is not here may see everything.
///
/// `api ← domain ← xapi ← controller, http ← local ← cli, main` and `xapi::{wire, model} ← sim ← cli`; `telemetry` serves all that do
/// something, and none of the pure ones.
const ARROWS: [(&str, &[&str]); 9] = [
    ("api", &["api"]),
    ("domain", &["domain", "api"]),
    ("xapi", &["xapi", "domain", "api", "telemetry"]),
    ("sim", &["sim", "xapi::wire", "xapi::model"]),
    ("telemetry", &["telemetry"]),
    ("controller", &["controller", "xapi", "domain", "api", "telemetry"]),
    ("http", &["http", "telemetry"]),
    ("local", &["local", "http", "controller", "xapi", "domain", "api", "telemetry"]),
    ("lib", &[]),
];

/// Words that must not occur in the code of a room: the libraries it does without.
const STRANGERS: [(&str, &[&str]); 4] = [
    ("api", &["tokio::", "reqwest::", "std::time::Instant", "SystemTime::now", "Timestamp::now"]),
    (
        "domain",
        &["tokio::", "reqwest::", "kube::", "async fn", ".await", "Instant::now", "SystemTime::now", "Timestamp::now"],
    ),
    ("xapi", &["kube::", "k8s_openapi::"]),
    ("sim", &["kube::", "k8s_openapi::"]),
];

const LINES: usize = 350;
/// How the head of a longer file begins its reason.
const EXCUSE: &str = "Longer than";

struct Source {
    path: PathBuf,
    /// Directory or file name below `src/`.
    room: String,
    /// How deep the module is: 1 for `src/api/mod.rs`, 2 for `src/api/layer.rs`.
    depth: usize,
    text: String,
}

impl Source {
    fn read(path: PathBuf, text: String) -> Self {
        let below = path.strip_prefix("src").expect("a file below src").with_extension("");
        let mut modules: Vec<_> = below.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        modules.pop_if(|last| last == "mod");
        Self { room: modules[0].clone(), depth: modules.len(), path, text }
    }

    /// Number and text of each line of code.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .map(|(at, line)| (at + 1, line))
            .filter(|(_, line)| !line.trim_start().starts_with("//"))
    }

    fn broken(&self, at: usize, line: &str, rule: &str) -> String {
        format!("{}:{at}: {}  ← {rule}", self.path.display(), line.trim())
    }
}

fn sources() -> Vec<Source> {
    files("src").into_iter().map(|(path, text)| Source::read(path, text)).collect()
}

/// The Rust files below a directory of the project, with their text.
fn files(below: &str) -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path()) {
            if entry.is_dir() {
                walk(&entry, found);
            } else {
                found.push(entry);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    walk(&root.join(below), &mut found);
    found.sort();
    let rust = found.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    let read = |path: PathBuf| {
        (path.strip_prefix(root).expect("below the root").to_owned(), fs::read_to_string(&path).expect("text"))
    };
    rust.map(read).collect()
}

fn none(broken: Vec<String>) {
    assert!(broken.is_empty(), "\n{}\n", broken.join("\n"));
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The paths that `text`, which follows `crate::`, names: one, or those of a group in braces, two names deep.
fn named(text: &str) -> Vec<String> {
    let Some(group) = text.strip_prefix('{') else {
        let first: String = text.chars().take_while(|c| is_name(*c)).collect();
        let rest = text[first.len()..].strip_prefix("::");
        return match rest.map(named) {
            Some(seconds) if !first.is_empty() => seconds
                .iter()
                .map(|second| format!("{first}::{}", second.split("::").next().unwrap_or_default()))
                .collect(),
            _ => vec![first],
        };
    };
    let mut paths = Vec::new();
    let (mut depth, mut begin) = (0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                paths.extend(named(group[begin..at].trim()));
                begin = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    paths
}

/// What the line at the beginning of `text` names below the root of the crate, by `crate::` or by enough `super::`.
fn reached(text: &str, depth: usize) -> Vec<String> {
    let line = text.lines().next().unwrap_or_default();
    let supers = "super::".repeat(depth);
    let doors = ["crate::", supers.as_str()];
    let after = doors.iter().flat_map(|door| line.match_indices(door).map(|(at, _)| (at, at + door.len())));
    // Part of a longer word, or of a longer row of supers: not this door.
    let after = after.filter(|(at, _)| !line[..*at].ends_with(|c| is_name(c) || c == ':'));
    let mut paths: Vec<_> = after.flat_map(|(_, end)| named(&text[end..])).filter(|path| !path.is_empty()).collect();
    paths.dedup();
    paths
}

#[test]
fn no_room_sees_a_room_above_it() {
    let mut broken = Vec::new();
    for source in sources() {
        let Some((_, allowed)) = ARROWS.iter().find(|(room, _)| *room == source.room) else { continue };
        for (at, line) in source.code() {
            // From here on, since a group in braces may go over many lines.
            let from = line.as_ptr() as usize - source.text.as_ptr() as usize;
            for path in reached(&source.text[from..], source.depth) {
                if !allowed.iter().any(|allowed| path == *allowed || path.starts_with(&format!("{allowed}::"))) {
                    broken.push(source.broken(at, line, &format!("{} may not see {path}", source.room)));
                }
            }
        }
    }
    none(broken);
}

#[test]
fn the_reader_of_paths_sees_groups_and_supers() {
    let seen = |text| reached(text, 2);
    assert_eq!(seen("use crate::api;"), ["api"]);
    assert_eq!(seen("let a: crate::xapi::wire::Value;"), ["xapi::wire"]);
    assert_eq!(seen("use crate::xapi::{wire, model::{A, B}};"), ["xapi::wire", "xapi::model"]);
    assert_eq!(
        seen("use crate::{\n    api::{X, Y},\n    domain,\n};\nuse crate::http;"),
        ["api::X", "api::Y", "domain"]
    );
    assert_eq!(seen("use super::super::http::serve;"), ["http::serve"]);
    assert_eq!(seen("use super::http::serve;"), Vec::<String>::new());
    assert_eq!(seen("othercrate::http"), Vec::<String>::new());
}

#[test]
fn pure_rooms_stay_pure() {
    let mut broken = Vec::new();
    for source in sources() {
        let strangers = STRANGERS.iter().filter(|(room, _)| *room == source.room).flat_map(|(_, words)| *words);
        for word in strangers {
            let with = source.code().filter(|(_, line)| {
                line.match_indices(word).any(|(at, _)| word.starts_with('.') || !line[..at].ends_with(is_name))
            });
            broken.extend(
                with.map(|(at, line)| source.broken(at, line, &format!("{} does without {word}", source.room))),
            );
        }
    }
    none(broken);
}

/// The simulator is an instrument: it must not know what is measured with it.
#[test]
fn the_simulator_knows_nothing_of_us() {
    let simulator = sources().into_iter().filter(|source| source.room == "sim");
    none(
        simulator
            .flat_map(|source| {
                let with = source.text.lines().enumerate().filter(|(_, line)| line.to_lowercase().contains("lamina"));
                with.map(|(at, line)| source.broken(at + 1, line, "our name")).collect::<Vec<_>>()
            })
            .collect(),
    );
}

/// Who adds a variant shall be led to each place where it matters.
#[test]
fn the_domain_matches_exhaustively() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| source.room == "domain") {
        broken.extend(source.code().filter_map(|(at, line)| {
            let arm = line.trim_start().trim_start_matches("| ");
            arm.starts_with("_ =>").then(|| source.broken(at, line, "name what else there is"))
        }));
    }
    none(broken);
}

/// The phase is an output. What was written is read back by who writes it, and told by who reports it.
#[test]
fn nobody_decides_by_the_phase() {
    let mut broken = Vec::new();
    for source in sources().iter().filter(|source| ["domain", "controller"].contains(&source.room.as_str())) {
        if ["status.rs", "report.rs"].iter().any(|name| source.path.ends_with(name)) {
            continue;
        }
        let with = source.code().filter(|(_, line)| line.contains("status.phase"));
        broken.extend(with.map(|(at, line)| source.broken(at, line, "only status.rs reads the phase back")));
    }
    none(broken);
}

#[test]
fn a_long_file_gives_its_reason_at_the_head() {
    let long = sources().into_iter().filter(|source| source.text.lines().count() > LINES);
    let silent = long.filter(|source| {
        let mut head = source.text.lines().take_while(|line| line.starts_with("//!"));
        !head.any(|line| line.contains(EXCUSE))
    });
    none(
        silent
            .map(|source| {
                format!(
                    "{}: {} lines, and no line of its head says: {EXCUSE} …",
                    source.path.display(),
                    source.text.lines().count()
                )
            })
            .collect(),
    );
}

#[test]
fn every_module_says_what_it_is() {
    let silent = sources().into_iter().filter(|source| !source.text.starts_with("//!"));
    none(silent.map(|source| format!("{}: begins without `//!`", source.path.display())).collect());
}

/// What in a statement proves something about the words in it: it fails where they are not as they should be.
const PROVING: [&str; 4] = ["assert", "until", "eventually(", "fails("];

/// Functions of a test's source, as rustfmt lays them out: each with the statements of its body, without comments. What is nested (a loop with
/// its table and its body, a closure) is one statement.
fn bodies(text: &str) -> Vec<Vec<String>> {
    let mut all: Vec<Vec<String>> = Vec::new();
    let mut within = None;
    for line in text.lines() {
        let (code, indent) = (line.trim(), line.len() - line.trim_start().len());
        match within {
            _ if code.starts_with("//") => {}
            None if code.contains("fn ") && code.ends_with('{') => {
                within = Some(indent);
                all.push(Vec::new());
            }
            None => {}
            Some(outer) if indent == outer && code == "}" => within = None,
            Some(outer) => {
                let body = all.last_mut().expect("a function");
                let goes_on = indent != outer + 4 || code.starts_with(['}', ')', ']', '.']);
                match body.last_mut().filter(|_| goes_on) {
                    Some(statement) => *statement += &format!("\n{line}"),
                    None => body.push(line.to_owned()),
                }
            }
        }
    }
    all
}

/// Words of a statement that may be reasons: in its texts, and after `Reason::` or `R::`.
fn words_of(statement: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for (at, part) in statement.split('"').enumerate() {
        let names = part.split(|c: char| !is_name(c));
        if at % 2 == 1 {
            words.extend(names);
        } else {
            // `A::B` comes as A, nothing, B.
            let names: Vec<_> = names.collect();
            words.extend(names.windows(3).filter(|w| ["Reason", "R"].contains(&w[0]) && w[1].is_empty()).map(|w| w[2]));
        }
    }
    words
}

/// Words that a source proves: in a statement that fails without them, or in a table or closure (`let`) that such a statement names.
fn proven(text: &str) -> HashSet<String> {
    let mut found = HashSet::new();
    for body in bodies(text) {
        let (proofs, others): (Vec<_>, Vec<_>) =
            body.iter().partition(|statement| PROVING.iter().any(|word| statement.contains(word)));
        let used: HashSet<_> = proofs.iter().flat_map(|proof| proof.split(|c: char| !is_name(c))).collect();
        let bound = |statement: &str| {
            let name = statement.trim_start().strip_prefix("let ")?.trim_start_matches("mut ");
            name.split(|c: char| !is_name(c)).next().map(|name| used.contains(name))
        };
        let tables = others.into_iter().filter(|statement| bound(statement) == Some(true));
        found.extend(proofs.iter().copied().chain(tables).flat_map(|s| words_of(s)).map(str::to_owned));
    }
    found
}

#[test]
fn a_word_is_proven_only_where_something_fails_without_it() {
    let source = r#"
/// "Comment"
fn of_a_test() {
    let unused = "Unused";
    let table = [
        ("Table", 1),
    ];
    // "Remark"
    run("Input", Reason::Argument);
    for (word, _) in table {
        assert_eq!(word, told());
    }
    rig.until_reason("x", "Awaited").await;
    assert_eq!(
        told(),
        Reason::Decided,
        "{unused_otherwise}"
    );
    assert!(Fault::Other == fault());
}
"#;
    let found = proven(source);
    for word in ["Table", "Awaited", "Decided"] {
        assert!(found.contains(word), "{word}: {found:?}");
    }
    for word in ["Comment", "Unused", "Remark", "Input", "Argument", "Other"] {
        assert!(!found.contains(word), "{word}: {found:?}");
    }
}

/// A reason that nothing sets, or that no test has seen, is a word that users look up in vain.
///
/// Reads sources, so it proves no more than this: the code names each reason, and each stands in a statement of some test that would fail
/// if that word were not told or decided (awaited on a live object, asserted of a status or of a decision), or in a table that such a
/// statement goes through. Not that the statement is reached, nor that it holds in every case: that is for the tests themselves.
#[test]
fn every_reason_is_set_by_the_code_and_seen_by_a_test() {
    let (mut code, mut seen) = (String::new(), HashSet::new());
    for Source { path, text, .. } in sources() {
        let is_test = path.file_stem().is_some_and(|stem| stem.to_string_lossy().ends_with("tests"));
        let (before, after) = text.split_once("\nmod tests {").unwrap_or((&text, ""));
        match is_test {
            true => seen.extend(proven(&text)),
            // The table itself proves nothing.
            false if path.ends_with("api/reason.rs") => {}
            false => {
                code += before;
                seen.extend(proven(after));
            }
        }
    }
    // Not this file, whose subject is the words themselves.
    let tests = files("tests").into_iter().filter(|(path, _)| !path.ends_with("layers.rs"));
    seen.extend(tests.chain(files("guest/tests")).flat_map(|(_, text)| proven(&text)));
    // What a guest finds, or the vendor's number says, comes under the name that the guest's table has for it.
    let guest: String = files("guest/src").into_iter().map(|(_, text)| text).collect();
    let set: HashSet<_> = ["Reason::", "R::"]
        .into_iter()
        .flat_map(|path| code.split(path).skip(1))
        .map(|rest| rest.split(|c: char| !is_name(c)).next().unwrap_or_default())
        .chain(guest.split(|c: char| !is_name(c)))
        .collect();
    let words = || Reason::ALL.iter().map(|reason| reason.as_str());
    let unset = words().filter(|word| !set.contains(word)).map(|word| format!("{word} is never set"));
    let unseen = words().filter(|word| !seen.contains(*word)).map(|word| format!("no test has seen {word}"));
    none(unset.chain(unseen).collect());
}
