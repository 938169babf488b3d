//! A Windows for one test: a copy of wine's prefix, programs in it, and what a test sets from outside.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The two registries of a 64-bit Windows, as `reg` names them.
pub const BITS_64: &str = "/reg:64";
pub const BITS_32: &str = "/reg:32";

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run guest/test-wine.sh"))
}

/// Ends with its programs and its files.
pub struct Wine {
    path: PathBuf,
    /// Its services and drives are there.
    up: Cell<bool>,
}

/// A program that was started and goes on; ends when it is dropped.
pub struct Running<'a> {
    wine: &'a Wine,
    child: Child,
    /// As Windows names it.
    image: String,
}

/// What a program said, and its exit code.
pub struct Ended {
    pub code: i32,
    pub said: String,
    pub complained: String,
}

impl Wine {
    /// Files are shared with the template as hard links: nobody writes into what Windows brings. The registry is written anew by wine.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let home = PathBuf::from(variable("LAMINA_WINE"));
        let path = home.join(format!("run-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&path).expect("a directory for the prefix");
        let copy = |how: &str, what: &[&str]| {
            let from = what.iter().map(|f| home.join("template").join(f));
            assert!(Command::new("cp").arg(how).args(from).arg(&path).status().expect("cp").success());
        };
        copy("-al", &["drive_c"]);
        copy("-a", &["dosdevices", "system.reg", "user.reg", "userdef.reg", ".update-timestamp"]);
        fs::copy(home.join("helper.exe"), path.join("drive_c/helper.exe")).expect("the helper");
        Self { path, up: Cell::default() }
    }

    /// A file or directory on drive C:, by its path there with slashes.
    pub fn c(&self, path: &str) -> PathBuf {
        self.path.join("drive_c").join(path)
    }

    pub fn file(&self, path: &str, bytes: &[u8]) {
        let path = self.c(path);
        fs::create_dir_all(path.parent().expect("a directory above")).expect("directories");
        fs::write(&path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    /// A volume E: with our label. wine shows a directory as a volume, and takes its label from a file in it.
    pub fn config_disk(&self) -> PathBuf {
        let disk = self.path.join("config-disk");
        fs::create_dir(&disk).expect("a directory for the disk");
        fs::write(disk.join(".windows-label"), "LAMINA\n").expect("a label");
        std::os::unix::fs::symlink(&disk, self.path.join("dosdevices/e:")).expect("a drive");
        disk
    }

    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("wine");
        command.arg(program).args(args).env("WINEPREFIX", &self.path).stdin(Stdio::null());
        command
    }

    /// Runs a program to its end. Through files: wine's own services would hold a pipe open.
    pub fn run(&self, program: &str, args: &[&str]) -> Ended {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let log = |what| self.path.join(format!("{}-{what}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let (out, err) = (log("out"), log("err"));
        let to = |path: &Path| File::create(path).expect("a log");
        let status = self.command(program, args).stdout(to(&out)).stderr(to(&err)).status().expect("wine");
        let text = |path: &Path| String::from_utf8_lossy(&fs::read(path).expect("a log")).replace("\r\n", "\n");
        Ended { code: status.code().expect("an exit code"), said: text(&out), complained: text(&err) }
    }

    /// The same, and it must succeed.
    pub fn done(&self, program: &str, args: &[&str]) -> String {
        let ended = self.run(program, args);
        assert_eq!(ended.code, 0, "{program} {args:?}: {}{}", ended.said, ended.complained);
        ended.said
    }

    /// On a busy host the first program comes before the services and drives that it asks for.
    fn come_up(&self) {
        let patience = Instant::now() + Duration::from_secs(60);
        while !self.up.get() {
            assert!(Instant::now() < patience, "wine does not come up");
            self.up.set(self.run("sc", &["query", "MountMgr"]).said.contains("RUNNING"));
        }
    }

    /// Our program.
    pub fn lamina(&self, args: &[&str]) -> Ended {
        self.come_up();
        self.run(&variable("LAMINA_EXE"), args)
    }

    /// `verify --json`: exit code and object.
    pub fn verify(&self) -> (i32, Value) {
        let ended = self.lamina(&["verify", "--json"]);
        let json =
            serde_json::from_str(&ended.said).unwrap_or_else(|e| panic!("{e}: {}{}", ended.said, ended.complained));
        (ended.code, json)
    }

    /// `<reason> <detail>` of every finding.
    pub fn findings(&self) -> Vec<String> {
        let (_, json) = self.verify();
        let text = |finding: &Value, key: &str| finding[key].as_str().expect("a text").to_owned();
        let all = json["findings"].as_array().expect("findings").iter();
        all.map(|f| format!("{} {}", text(f, "reason"), text(f, "detail"))).collect()
    }

    /// The helper, or a copy of it by another name, as it says that it is ready.
    pub fn helper(&self, image: &str, args: &[&str]) -> Running<'_> {
        let path = self.c(image);
        if !path.exists() {
            fs::copy(self.c("helper.exe"), &path).expect("a copy of the helper");
        }
        let mut child = self
            .command(&format!(r"C:\{image}"), args)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("wine");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("its output")).read_line(&mut line).expect("its first line");
        assert_eq!(line.trim(), "ready");
        Running { wine: self, child, image: image.to_owned() }
    }

    /// Our program, left running.
    pub fn start(&self, args: &[&str]) -> Running<'_> {
        let mut command = self.command(&variable("LAMINA_EXE"), args);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("wine");
        Running { wine: self, child, image: "lamina-guest.exe".to_owned() }
    }

    pub fn set(&self, view: &str, key: &str, name: &str, kind: &str, data: &str) {
        self.done("reg", &["add", &format!(r"HKLM\{key}"), "/v", name, "/t", kind, "/d", data, "/f", view]);
    }

    pub fn make_key(&self, view: &str, key: &str) {
        self.done("reg", &["add", &format!(r"HKLM\{key}"), "/f", view]);
    }

    pub fn unset(&self, view: &str, key: &str, name: &str) {
        self.done("reg", &["delete", &format!(r"HKLM\{key}"), "/v", name, "/f", view]);
    }

    pub fn remove_key(&self, view: &str, key: &str) {
        self.done("reg", &["delete", &format!(r"HKLM\{key}"), "/f", view]);
    }

    /// Ends every program, so that all of the registry is on the disk.
    pub fn end(&self) {
        let server = |how| Command::new("wineserver").arg(how).env("WINEPREFIX", &self.path).status();
        // One that ended by itself is no longer there to be told.
        let _ = server("-k");
        let _ = server("-w");
        self.up.set(false);
    }

    pub fn registry(&self) -> String {
        self.end();
        fs::read_to_string(self.path.join("system.reg")).expect("the registry")
    }
}

impl Drop for Wine {
    fn drop(&mut self) {
        self.end();
        let _ = fs::remove_dir_all(&self.path);
    }
}

impl Running<'_> {
    /// To its own end.
    pub fn wait(mut self) -> i32 {
        self.child.wait().expect("its end").code().expect("an exit code")
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.wine.run("taskkill", &["/F", "/IM", &self.image]);
            let _ = self.child.wait();
        }
    }
}
