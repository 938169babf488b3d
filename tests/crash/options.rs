//! What the command line asks for. `cargo test` hands the same words to every test binary: those of its harness are let pass.

/// See [`Options::parse`].
#[derive(Default)]
pub struct Options {
    /// Every case, however long it takes.
    pub all: bool,
    /// Print the calls of the recorded lives.
    pub calls: bool,
    /// Only the cases with such names, e.g. `SecondFrozen/*Late`.
    pub cases: Vec<String>,
    /// Parts of names of tests, as the harness takes them.
    names: Vec<String>,
    skipped: Vec<String>,
    /// Print this, and do nothing.
    pub answer: Option<String>,
}

/// The two tests, as the harness would name them.
const ENUMERATED: &str = "crash::every_call_and_every_write_may_be_the_last";
const KILLED: &str = "crash::ten_deaths_of_the_real_binary_make_nothing_twice";

/// Flags of the harness that take a value, but for `--skip`.
const VALUED: [&str; 5] = ["--test-threads", "--format", "--color", "--logfile", "-Z"];
const HELP: &str = "cargo test --test crash [-- [--all] [--calls] [CASE]... [NAME]...]
  --all    every case, however long it takes
  --calls  print the calls of the recorded lives
  CASE     only such cases: HappyMade/Call/7/XapiDies, 'SecondFrozen/*Late'
  NAME     a part of the name of one of the two tests";

impl Options {
    /// `--all`, `--calls`, names of cases (with a slash or a star), parts of names of tests.
    pub fn parse(mut words: impl Iterator<Item = String>) -> Self {
        let mut options = Self::default();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--all" => options.all = true,
                "--calls" => options.calls = true,
                "--help" | "-h" => options.answer = Some(HELP.to_owned()),
                "--list" => options.answer = Some(format!("{ENUMERATED}: test\n{KILLED}: test")),
                "--ignored" => options.answer = Some("no test is ignored".to_owned()),
                "--skip" => options.skipped.extend(words.next()),
                flag if VALUED.contains(&flag) => drop(words.next()),
                flag if flag.starts_with('-') => {}
                case if case.contains(['/', '*']) => options.cases.push(word),
                _ => options.names.push(word),
            }
        }
        options
    }

    fn named(&self, test: &str) -> bool {
        let met = |parts: &[String]| parts.iter().any(|part| test.contains(part.as_str()));
        (self.names.is_empty() || met(&self.names)) && !met(&self.skipped)
    }

    pub fn enumerates(&self) -> bool {
        self.named(ENUMERATED)
    }

    pub fn kills(&self) -> bool {
        self.named(KILLED) && self.cases.is_empty()
    }

    /// Is a case of this name asked for?
    pub fn wants(&self, name: &str) -> bool {
        self.cases.iter().any(|case| case.split('*').all(|part| name.contains(part)))
    }
}
