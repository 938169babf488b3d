//! Carries out what the command line says, on this Windows. Called by `main`.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use windows::Win32::System::Console::{FreeConsole, GetConsoleProcessList, SetConsoleCtrlHandler};
use windows::Win32::System::Threading::{GetExitCodeProcess, INFINITE, WaitForSingleObject};
use windows::Win32::UI::Shell::{
    IsUserAnAdmin, SEE_MASK_NOASYNC, SEE_MASK_NOCLOSEPROCESS, SHELLEXECUTEINFOW, ShellExecuteExW,
};
use windows::Win32::UI::WindowsAndMessaging::SW_SHOWMINNOACTIVE;
use windows::core::{HSTRING, Owned, PCWSTR, w};

use super::system::Turn;
use super::{Windows, Xenstore, install, service, window};
use crate::channel::config_disk;
use crate::checks;
use crate::command::{Answer, Cli, Command, Shutdown};
use crate::facts::Facts;
use crate::finalize::{self, Machine, Order, finalize};
use crate::page::Page;
use crate::service::{End, boot, mark, take_answer};
use crate::steps::engine;
use crate::verify::{BLIND, CLEAN, exit_code, json, table};

type Outcome = Result<u8, Box<dyn Error>>;

/// The exit code.
pub fn run(cli: Cli) -> u8 {
    let done = match cli.command {
        Some(Command::Verify { json: true }) => Ok(verify(json)),
        Some(Command::Verify { json: false }) => Ok(verify(table)),
        Some(Command::ShutdownForFinalize(how)) if how.window => in_window(how),
        Some(Command::ShutdownForFinalize(how)) => in_console(how),
        Some(Command::Install) => install::install().map(|()| CLEAN).map_err(Into::into),
        Some(Command::Uninstall) => uninstall(),
        Some(Command::Answer { step, answer }) => answered(&step, answer),
        Some(Command::Service) => service::run().map(|()| CLEAN).map_err(Into::into),
        None if double_clicked() => in_window(Shutdown { window: true, ..Shutdown::default() }),
        None => {
            eprintln!("Say what to do: 'lamina-guest --help' lists it.");
            Ok(BLIND)
        }
    };
    done.unwrap_or_else(|why| {
        eprintln!("lamina-guest: {}", chain(why.as_ref()));
        BLIND
    })
}

/// An error with its causes.
fn chain(error: &dyn Error) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        words.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    words
}

fn verify(form: fn(&checks::Verdict) -> String) -> u8 {
    let verdict = checks::check(&Windows::open());
    println!("{}", form(&verdict).trim_end());
    exit_code(&verdict)
}

fn in_console(how: Shutdown) -> Outcome {
    if !how.leave_on {
        println!(
            "If nothing is found, the machine is switched off some seconds after its report. Leave this prompt open."
        );
        // What is spent and reported belongs together: Ctrl-C does not come between them.
        // SAFETY: takes no function, and says that this process ignores Ctrl-C.
        unsafe { SetConsoleCtrlHandler(None, true) }?;
    }
    let outcome = shutdown_for_finalize(how)?;
    print!("{}", table(&outcome.verdict));
    for channel in &outcome.unwritten {
        eprintln!("not reported through every channel: {channel}");
    }
    if outcome.off {
        println!("The report is written; the machine is shutting down.");
    }
    Ok(exit_code(&outcome.verdict))
}

/// Shows every outcome, a failure too, as nobody reads a console that is about to close.
fn in_window(how: Shutdown) -> Outcome {
    // SAFETY: takes nothing.
    if !unsafe { IsUserAnAdmin() }.as_bool() {
        return as_administrator(how);
    }
    let meanwhile = if how.leave_on {
        "Looking at this Windows …\n\nWhat is found is reported; the machine stays on.\n"
    } else {
        "Looking at this Windows …\n\nIf nothing is found, the machine is reported as ready and shut down.\n"
    };
    let last = Arc::new(AtomicU8::new(BLIND));
    let told = Arc::clone(&last);
    window::run(meanwhile, move || {
        let (page, code) = match shutdown_for_finalize(how) {
            Ok(outcome) if outcome.verdict.clean() => (Page::clean(outcome.off), CLEAN),
            Ok(outcome) => (Page::findings(&outcome.verdict), exit_code(&outcome.verdict)),
            Err(why) => (Page::trouble(&chain(why.as_ref())), BLIND),
        };
        told.store(code, Ordering::Relaxed);
        page
    })?;
    Ok(last.load(Ordering::Relaxed))
}

/// Starts this program once more, with the rights that it needs, and ends with its exit code; Windows asks the person.
fn as_administrator(how: Shutdown) -> Outcome {
    let own = HSTRING::from(std::env::current_exe()?.as_path());
    let flag = |set: bool, name: &'static str| if set { name } else { "" };
    let args = format!(
        "shutdown-for-finalize --window{}{}",
        flag(how.wait_ngen, " --wait-ngen"),
        flag(how.leave_on, " --leave-on")
    );
    let args = HSTRING::from(args);
    let mut how = SHELLEXECUTEINFOW {
        cbSize: size_of::<SHELLEXECUTEINFOW>() as u32,
        fMask: SEE_MASK_NOCLOSEPROCESS | SEE_MASK_NOASYNC,
        lpVerb: w!("runas"),
        lpFile: PCWSTR(own.as_ptr()),
        lpParameters: PCWSTR(args.as_ptr()),
        nShow: SW_SHOWMINNOACTIVE.0,
        ..Default::default()
    };
    // SAFETY: the structure says how long it is, and it and every string live through the call.
    unsafe { ShellExecuteExW(&mut how) }.map_err(|e| format!("it needs an administrator's rights: {e}"))?;
    // SAFETY: what the call returned is ours to close, which `Owned` does.
    let copy = unsafe { Owned::new(how.hProcess) };
    // A console that came with the icon has nothing to say while the window is open. Without one this fails, and nothing is lost.
    // SAFETY: takes nothing.
    let _ = unsafe { FreeConsole() };
    let mut code = u32::from(BLIND);
    // SAFETY: the handle is open, or null, which both calls refuse: then nobody knows, and the code says so.
    let _ = unsafe {
        WaitForSingleObject(*copy, INFINITE);
        GetExitCodeProcess(*copy, &mut code)
    };
    Ok(u8::try_from(code).unwrap_or(BLIND))
}

fn shutdown_for_finalize(how: Shutdown) -> Result<finalize::Outcome, Box<dyn Error>> {
    let _turn = turn()?;
    let windows = Windows::open();
    let machine = Machine { facts: &windows, deeds: &windows, store: Some(&Xenstore) };
    // First what may be refused: steps that are left need their service.
    let (bound, asked) = mark(&machine, &service::boot_id()?)?;
    if from_config_disk(&windows)? {
        // Nothing of us may stay in the layer.
        install::uninstall()?;
    }
    let order = Order { wait_ngen: how.wait_ngen, leave_on: how.leave_on, ..asked };
    Ok(finalize(&machine, &bound, order)?)
}

/// Ours, until it is dropped. Nobody is waited for: a person sees what is at work, and tries again.
fn turn() -> Result<Turn, Box<dyn Error>> {
    Turn::take(Duration::ZERO)?.ok_or_else(|| {
        "the service, or another copy of this program, is at work, and nothing was done: wait until it is done, then try again".into()
    })
}

/// Is this the copy that the config disk carries?
fn from_config_disk(facts: &dyn Facts) -> Result<bool, Box<dyn Error>> {
    let own = std::env::current_exe()?;
    let disk = config_disk(facts)?;
    Ok(disk.is_some_and(|volume| {
        own.to_string_lossy().to_ascii_uppercase().starts_with(&volume.root.to_ascii_uppercase())
    }))
}

fn uninstall() -> Outcome {
    if let Some(left) = install::uninstall()? {
        println!(
            "Service and icon are gone. This program cannot delete itself: remove {} when it has ended.",
            left.display()
        );
    }
    Ok(CLEAN)
}

/// The service goes on, where there is one: what it runs belongs to it and not to a prompt that may be closed.
fn answered(step: &str, said: Answer) -> Outcome {
    let turn = turn()?;
    let windows = Windows::open();
    let machine = Machine { facts: &windows, deeds: &windows, store: Some(&Xenstore) };
    let said = match said {
        Answer::Again => engine::Answer::Again,
        Answer::Skip => engine::Answer::Skip,
    };
    let id = service::boot_id()?;
    take_answer(&machine, &id, step, said)?;
    // It would take us for a shutdown for finalize.
    drop(turn);
    let serves = install::start_service().map_err(|e| format!("the answer is recorded, reboot to go on: {e}"))?;
    if serves {
        println!("The answer is recorded, and the service goes on with the steps.");
        return Ok(CLEAN);
    }
    let _turn = self::turn()?;
    match boot(&machine, &id) {
        End::Stays(why) => Err(why.into()),
        End::NoDisk | End::Done | End::Rebooting | End::Off => Ok(CLEAN),
    }
}

/// Started by Explorer, the program has a console to itself; from a prompt it shares the prompt's.
fn double_clicked() -> bool {
    let mut ids = [0; 2];
    // SAFETY: the call is told how long the list is.
    unsafe { GetConsoleProcessList(&mut ids) == 1 }
}
