//! [`Deeds`]: programs, files, and what the other modules do.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::windows::io::AsRawHandle;
use std::os::windows::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use windows::Win32::Foundation::{HANDLE, WAIT_OBJECT_0, WAIT_TIMEOUT};
use windows::Win32::System::Diagnostics::ToolHelp::{
    CreateToolhelp32Snapshot, TH32CS_SNAPTHREAD, THREADENTRY32, Thread32First, Thread32Next,
};
use windows::Win32::System::JobObjects::{AssignProcessToJobObject, CreateJobObjectW, TerminateJobObject};
use windows::Win32::System::Threading::{
    CREATE_NO_WINDOW, CREATE_SUSPENDED, OpenThread, ResumeThread, THREAD_SUSPEND_RESUME, WaitForSingleObject,
};
use windows::core::{Error, Owned, PCWSTR};

use super::{Windows, cards, power, wmi};
use crate::deeds::{Deeds, Done, Ended, Failed, Job};
use crate::log::Kept;

/// What a program that is ended says of itself to whoever waits for it besides us: `WAIT_TIMEOUT`'s number.
const ENDED: u32 = 258;
/// How long what a program printed last is waited for, once it has ended.
const LAST_WORDS: Duration = Duration::from_secs(5);

impl Deeds for Windows {
    fn run(&self, job: &Job) -> Done<Ended> {
        run(job).map_err(|e| Failed { what: format!("run {}", job.program), why: e.to_string() })
    }

    fn write(&self, path: &str, bytes: &[u8]) -> Done<()> {
        write(path, bytes).map_err(|e| Failed { what: format!("write {path}"), why: e.to_string() })
    }

    fn remove(&self, path: &str) -> Done<()> {
        remove(path).map_err(|e| Failed { what: format!("remove {path}"), why: e.to_string() })
    }

    fn rearm(&self) -> Done<()> {
        wmi::rearm()
    }

    fn remove_card(&self, id: &str) -> Done<()> {
        cards::remove(id)
    }

    fn power_off(&self, after: Duration) -> Done<()> {
        power::off(after)
    }

    fn stay_on(&self) -> Done<()> {
        power::stay_on()
    }

    fn reboot(&self) -> Done<()> {
        power::reboot()
    }

    fn wait(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// In place: what is torn by a machine that dies in the middle has a seal that tells.
fn write(path: &str, bytes: &[u8]) -> io::Result<()> {
    if let Some(above) = Path::new(path).parent() {
        fs::create_dir_all(above)?;
    }
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

pub fn remove(path: &str) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn run(job: &Job) -> io::Result<Ended> {
    let mut command = Command::new(&job.program);
    command.raw_arg(&job.args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let log = job.log.as_deref().map(|path| Log::of(path, &mut command)).transpose()?;
    if let Some(directory) = &job.directory {
        command.current_dir(directory);
    }
    // It runs only once it is in its job, so that nothing that it starts can be outside.
    let child = command.creation_flags(CREATE_NO_WINDOW.0 | CREATE_SUSPENDED.0).spawn()?;
    // Our own ends of its outputs, or they would never end.
    drop(command);
    let ended = held(child, job.limit);
    if let Some(log) = log {
        log.end();
    }
    ended.map_err(io::Error::from)
}

/// What a program prints, on its way into a file.
struct Log {
    kept: Arc<Mutex<Kept<File>>>,
    /// Nothing more can come.
    over: Receiver<()>,
}

impl Log {
    /// Takes both outputs of the command.
    fn of(path: &str, command: &mut Command) -> io::Result<Self> {
        if let Some(above) = Path::new(path).parent() {
            fs::create_dir_all(above)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let (mut from, to) = io::pipe()?;
        command.stdout(to.try_clone()?).stderr(to);
        let kept = Arc::new(Mutex::new(Kept::new(file)));
        let (tell, over) = channel();
        let into = Arc::clone(&kept);
        std::thread::spawn(move || {
            let mut bytes = [0; 64 << 10];
            while let Ok(read @ 1..) = from.read(&mut bytes) {
                into.lock().unwrap_or_else(PoisonError::into_inner).take(bytes.get(..read).unwrap_or_default());
            }
            // Whoever started us may have given up on the rest.
            tell.send(()).unwrap_or_default();
        });
        Ok(Self { kept, over })
    }

    /// Who outlives the step keeps its outputs open, and goes on to be read, so that it is not held up; nothing of that is kept.
    fn end(self) {
        self.over.recv_timeout(LAST_WORDS).unwrap_or_default();
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).end();
    }
}

/// Runs the suspended program to its end or limit; `store` has the vendor's program run by it too.
pub fn held(mut child: Child, limit: Duration) -> windows::core::Result<Ended> {
    let process = HANDLE(child.as_raw_handle());
    // SAFETY: takes no pointers; what it returns is ours to close, which `Owned` does. Closing it ends nobody: what a step leaves
    // running, such as an agent, goes on.
    let job: Owned<HANDLE> = unsafe { CreateJobObjectW(None, PCWSTR::null()).map(|h| Owned::new(h)) }?;
    // Windows 7 refuses a second job for a program that inherited one from whoever started us. Then the limit ends it alone.
    // SAFETY: both handles are open.
    let whole = unsafe { AssignProcessToJobObject(*job, process) }.is_ok();
    if let Err(e) = resume(child.id()) {
        // Nothing of it ran yet.
        child.kill().unwrap_or_default();
        return Err(e);
    }
    let most = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX - 1);
    // SAFETY: the handle is the child's, and `child` keeps it open.
    match unsafe { WaitForSingleObject(process, most) } {
        WAIT_OBJECT_0 => Ok(Ended::Code(child.wait()?.code().unwrap_or_default())),
        WAIT_TIMEOUT => {
            if whole {
                // SAFETY: the job is open.
                unsafe { TerminateJobObject(*job, ENDED) }?;
            } else {
                child.kill()?;
            }
            child.wait()?;
            Ok(Ended::TimedOut)
        }
        _ => Err(Error::from_thread()),
    }
}

/// Lets every thread of a process run that was started suspended; it has one.
fn resume(process: u32) -> windows::core::Result<()> {
    // SAFETY: takes numbers; what it returns is ours to close, which `Owned` does.
    let snapshot: Owned<HANDLE> = unsafe { CreateToolhelp32Snapshot(TH32CS_SNAPTHREAD, 0).map(|h| Owned::new(h)) }?;
    let mut entry = THREADENTRY32 { dwSize: size_of::<THREADENTRY32>() as u32, ..Default::default() };
    // SAFETY: the snapshot is open, and the entry is as large as it says.
    let mut next = unsafe { Thread32First(*snapshot, &mut entry) };
    while next.is_ok() {
        if entry.th32OwnerProcessID == process {
            // SAFETY: takes numbers; what it returns is ours to close.
            let thread: Owned<HANDLE> =
                unsafe { OpenThread(THREAD_SUSPEND_RESUME, false, entry.th32ThreadID).map(|h| Owned::new(h)) }?;
            // SAFETY: the handle is open and may resume.
            if unsafe { ResumeThread(*thread) } == u32::MAX {
                return Err(Error::from_thread());
            }
        }
        // SAFETY: as for the first.
        next = unsafe { Thread32Next(*snapshot, &mut entry) };
    }
    Ok(())
}
