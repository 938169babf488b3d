//! A program that cannot outlive us, not even when we are killed with a signal that nobody can catch. Called by [`super::controlplane`].
//!
//! Between us and the program stands a shell that holds the reading end of a pipe. Whatever ends this process, the kernel closes the
//! other end; the shell then kills the program and removes the directory. A test binary, whose statics are never dropped, is cleaned up
//! after in the same way. Never give it a program whose data anybody wants: it gets SIGKILL and no time.
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child as Process, Command, Stdio};

/// `$1` the directory to remove in the end, `$2` the log, then the program and its arguments.
///
/// File descriptor 3 stands for the pipe, since a background job reads from /dev/null. The watcher ignores SIGTERM once the pipe is
/// closed: its exit status then tells whether the program was stopped (0: the directory goes) or died by itself (its log is of use).
/// Several programs share the directory, and whoever is last to die removes it for good.
const SUPERVISOR: &str = r#"
exec 3<&0
root=$1 log=$2
shift 2
"$@" </dev/null >"$log" 2>&1 3<&- &
program=$!
(
  while read -r _ <&3; do :; done
  trap '' TERM
  kill -KILL "$program" 2>/dev/null
  :
) &
watcher=$!
wait "$program"
status=$?
kill "$watcher" 2>/dev/null
wait "$watcher" && rm -rf "$root"
exit "$status"
"#;

/// A running program with its supervisor; dropped, both are gone before `drop` returns.
#[derive(Debug)]
pub struct Child(Process);

impl Child {
    /// Starts `program`; standard output and error go to `log`. `root` is removed when the program is stopped.
    pub fn start(program: &Path, args: &[String], root: &Path, log: &Path) -> std::io::Result<Self> {
        Command::new("sh")
            .args(["-c", SUPERVISOR, "supervisor"])
            .args([root, log, program])
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C at the terminal is ours to hear first: it goes to a process group, so this is another one.
            .process_group(0)
            .spawn()
            .map(Self)
    }

    /// Whether the program has ended by itself.
    pub fn ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // Nobody is left to tell of an error here.
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(program: &str, args: &[&str]) -> (Child, std::path::PathBuf) {
        let root = tempfile::tempdir().unwrap().keep();
        let args: Vec<_> = args.iter().map(ToString::to_string).collect();
        (Child::start(Path::new(program), &args, &root, &root.join("log")).unwrap(), root)
    }

    /// Dropping closes the pipe, which is all that the kernel does for a process that was killed.
    #[test]
    fn a_closed_pipe_ends_the_program_and_removes_its_directory() {
        let (mut child, root) = start("sleep", &["1000"]);
        assert!(!child.ended());
        drop(child);
        assert!(!root.exists());
    }

    #[test]
    fn a_program_that_died_leaves_its_log() {
        let (mut child, root) = start("sh", &["-c", "echo why; exit 3"]);
        // Waiting closes the pipe, which would have the directory removed: it is kept open for the time.
        let _pipe = child.0.stdin.take();
        assert_eq!(child.0.wait().unwrap().code(), Some(3));
        assert!(child.ended());
        assert_eq!(std::fs::read_to_string(root.join("log")).unwrap(), "why\n");
        std::fs::remove_dir_all(root).unwrap();
    }
}
