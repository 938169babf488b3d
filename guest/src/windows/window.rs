//! The window of findings: what the desktop icon shows. A text that can be scrolled and copied, *Check again* and *Close*; nothing else.
//!
//! One window in a process. The work is done on a thread of its own, so that the window answers; while it lasts the window stays, as what is
//! under way may be the shutdown itself.

use std::cell::Cell;
use std::sync::{Mutex, OnceLock, PoisonError};

use windows::Win32::Foundation::{HINSTANCE, HWND, LPARAM, LRESULT, RECT, WPARAM};
use windows::Win32::Graphics::Gdi::{
    COLOR_BTNFACE, CreateFontIndirectW, GetDC, GetDeviceCaps, HBRUSH, LOGPIXELSY, ReleaseDC,
};
use windows::Win32::System::Console::FreeConsole;
use windows::Win32::UI::Input::KeyboardAndMouse::{EnableWindow, SetFocus};
use windows::Win32::UI::WindowsAndMessaging::{
    BS_DEFPUSHBUTTON, BS_PUSHBUTTON, CREATESTRUCTW, CW_USEDEFAULT, CreateWindowExW, DefWindowProcW, DestroyWindow,
    DispatchMessageW, ES_AUTOVSCROLL, ES_MULTILINE, ES_READONLY, GetClientRect, GetMessageW, HMENU, IDC_ARROW,
    IDCANCEL, IDI_INFORMATION, IDOK, IsDialogMessageW, LoadCursorW, LoadIconW, MINMAXINFO, MSG, MoveWindow,
    NONCLIENTMETRICSW, PostMessageW, PostQuitMessage, RegisterClassW, SPI_GETNONCLIENTMETRICS, SW_SHOWNORMAL,
    SYSTEM_PARAMETERS_INFO_UPDATE_FLAGS, SendMessageW, SetForegroundWindow, SetProcessDPIAware, SetWindowTextW,
    ShowWindow, SystemParametersInfoW, TranslateMessage, WINDOW_EX_STYLE, WINDOW_STYLE, WM_APP, WM_CLOSE, WM_COMMAND,
    WM_CREATE, WM_DESTROY, WM_GETMINMAXINFO, WM_SETFONT, WM_SIZE, WNDCLASSW, WS_BORDER, WS_CHILD, WS_EX_CLIENTEDGE,
    WS_OVERLAPPEDWINDOW, WS_TABSTOP, WS_VISIBLE, WS_VSCROLL,
};
use windows::core::{HSTRING, PCWSTR, Result, w};

use crate::page::Page;

/// The work's thread is done.
const DONE: u32 = WM_APP + 1;
/// Sizes at 96 dots per inch.
const BUTTON: (i32, i32) = (110, 28);
const MARGIN: i32 = 12;
const FIRST: (i32, i32) = (720, 460);
const LEAST: (i32, i32) = (420, 240);

/// What is said while it lasts, and the work.
type Work = (&'static str, Box<dyn Fn() -> Page + Send + Sync>);

static WORK: OnceLock<Work> = OnceLock::new();
/// From the work's thread to the window's.
static PAGE: Mutex<Page> = Mutex::new(Page { text: String::new(), again: false });

/// What the window's procedure needs; copied, as a message can come in the middle of another.
#[derive(Clone, Copy, Default)]
struct Controls {
    text: HWND,
    again: HWND,
    close: HWND,
    busy: bool,
    dots: i32,
}

thread_local! {
    static CONTROLS: Cell<Controls> = Cell::default();
}

/// Opens the window, has the work done at once and whenever it is asked for, and returns when the window is closed.
pub fn run(meanwhile: &'static str, work: impl Fn() -> Page + Send + Sync + 'static) -> Result<()> {
    if WORK.set((meanwhile, Box::new(work))).is_err() {
        return Ok(());
    }
    // The console that Windows opens for a program like this one has nothing to say. Without one this fails, and nothing is lost.
    // SAFETY: takes nothing.
    let _ = unsafe { FreeConsole() };
    // SAFETY: takes nothing; it only changes how large things are, and comes before the first window.
    let _ = unsafe { SetProcessDPIAware() };
    let class = WNDCLASSW {
        lpfnWndProc: Some(procedure),
        lpszClassName: w!("LaminaFindings"),
        // SAFETY: both are Windows' own, by number.
        hCursor: unsafe { LoadCursorW(None, IDC_ARROW) }?,
        // SAFETY: as above.
        hIcon: unsafe { LoadIconW(None, IDI_INFORMATION) }?,
        hbrBackground: HBRUSH((COLOR_BTNFACE.0 + 1) as usize as *mut _),
        ..Default::default()
    };
    // SAFETY: the class lives through the call; its name is static and its procedure is a function of ours.
    if unsafe { RegisterClassW(&class) } == 0 {
        return Err(windows::core::Error::from_thread());
    }
    let dots = dots();
    // SAFETY: class and title are static; there is no parent, menu or parameter.
    let window = unsafe {
        CreateWindowExW(
            WINDOW_EX_STYLE(0),
            class.lpszClassName,
            w!("Shutdown For Finalize"),
            WS_OVERLAPPEDWINDOW,
            CW_USEDEFAULT,
            CW_USEDEFAULT,
            FIRST.0 * dots / 96,
            FIRST.1 * dots / 96,
            None,
            None,
            None,
            None,
        )
    }?;
    // Twice: the first call of a process does what its starter asked for, and the icon asks for a minimized console.
    for _ in 0..2 {
        // SAFETY: the window is ours and open.
        let _ = unsafe { ShowWindow(window, SW_SHOWNORMAL) };
    }
    // SAFETY: as above. Windows may refuse, and blinks in the task bar then.
    let _ = unsafe { SetForegroundWindow(window) };
    begin(window);
    let mut message = MSG::default();
    // SAFETY: `message` lives through the loop, the window belongs to this thread.
    unsafe {
        while GetMessageW(&mut message, None, 0, 0).0 > 0 {
            if !IsDialogMessageW(window, &message).as_bool() {
                let _ = TranslateMessage(&message);
                DispatchMessageW(&message);
            }
        }
    }
    Ok(())
}

/// Dots per inch of the screen.
fn dots() -> i32 {
    // SAFETY: the screen's context is asked one number and given back.
    unsafe {
        let screen = GetDC(None);
        let dots = GetDeviceCaps(Some(screen), LOGPIXELSY);
        ReleaseDC(None, screen);
        dots.max(96)
    }
}

/// Starts the work, unless it is under way.
fn begin(window: HWND) {
    let controls = CONTROLS.get();
    let Some((meanwhile, work)) = WORK.get() else { return };
    if controls.busy {
        return;
    }
    CONTROLS.set(Controls { busy: true, ..controls });
    show(&controls, meanwhile, false, false);
    // A window's handle may be used from any thread to post to it.
    let to = window.0 as usize;
    std::thread::spawn(move || {
        *PAGE.lock().unwrap_or_else(PoisonError::into_inner) = work();
        // SAFETY: posting takes any handle; a window that is gone refuses.
        let _ = unsafe { PostMessageW(Some(HWND(to as *mut _)), DONE, WPARAM(0), LPARAM(0)) };
    });
}

fn show(controls: &Controls, text: &str, again: bool, close: bool) {
    // SAFETY: the three controls live as long as the window; the text through the call, which copies it.
    unsafe {
        // The control's own line ends are carriage return and newline. Where it cannot take the text, the old one stays.
        let _ = SetWindowTextW(controls.text, &HSTRING::from(text.replace('\n', "\r\n")));
        let _ = EnableWindow(controls.again, again);
        let _ = EnableWindow(controls.close, close);
        let _ = SetFocus(Some(if again { controls.again } else { controls.text }));
    }
}

/// Windows calls this for every message of the window.
///
/// # Safety
/// Called by Windows alone, which hands over what belongs to the message.
unsafe extern "system" fn procedure(window: HWND, message: u32, first: WPARAM, second: LPARAM) -> LRESULT {
    let controls = CONTROLS.get();
    match message {
        WM_CREATE => {
            // SAFETY: with this message comes a CREATESTRUCTW, valid while it is handled.
            let made = unsafe { &*(second.0 as *const CREATESTRUCTW) };
            match create(window, made.hInstance) {
                Ok(made) => CONTROLS.set(made),
                // The window is not made then, and `run` says why.
                Err(_) => return LRESULT(-1),
            }
        }
        WM_SIZE => place(window, &controls),
        WM_GETMINMAXINFO => {
            // SAFETY: with this message comes a MINMAXINFO to be changed, valid while it is handled.
            let limits = unsafe { &mut *(second.0 as *mut MINMAXINFO) };
            let dots = controls.dots.max(96);
            (limits.ptMinTrackSize.x, limits.ptMinTrackSize.y) = (LEAST.0 * dots / 96, LEAST.1 * dots / 96);
        }
        DONE => {
            CONTROLS.set(Controls { busy: false, ..controls });
            let page = PAGE.lock().unwrap_or_else(PoisonError::into_inner).clone();
            show(&controls, &page.text, page.again, true);
        }
        WM_COMMAND if first.0 & 0xFFFF == IDOK.0 as usize => begin(window),
        WM_COMMAND if first.0 & 0xFFFF == IDCANCEL.0 as usize && !controls.busy => {
            // SAFETY: the window is ours. Where it is being destroyed already, that is what is wanted.
            let _ = unsafe { DestroyWindow(window) };
        }
        WM_CLOSE if controls.busy => {}
        // SAFETY: takes a number.
        WM_DESTROY => unsafe { PostQuitMessage(0) },
        // SAFETY: what Windows handed over goes on as it came.
        _ => return unsafe { DefWindowProcW(window, message, first, second) },
    }
    LRESULT(0)
}

fn create(window: HWND, instance: HINSTANCE) -> Result<Controls> {
    let child = |class: PCWSTR, text: PCWSTR, edge: WINDOW_EX_STYLE, style: u32, id: i32| {
        let style = WS_CHILD | WS_VISIBLE | WS_TABSTOP | WINDOW_STYLE(style);
        // SAFETY: class and text are static; a child's menu is its number.
        unsafe {
            CreateWindowExW(
                edge,
                class,
                text,
                style,
                0,
                0,
                0,
                0,
                Some(window),
                Some(HMENU(id as usize as *mut _)),
                Some(instance),
                None,
            )
        }
    };
    let lines = WS_VSCROLL.0 | WS_BORDER.0 | (ES_MULTILINE | ES_READONLY | ES_AUTOVSCROLL) as u32;
    let controls = Controls {
        text: child(w!("EDIT"), w!(""), WS_EX_CLIENTEDGE, lines, 100)?,
        again: child(w!("BUTTON"), w!("Check &again"), WINDOW_EX_STYLE(0), BS_DEFPUSHBUTTON as u32, IDOK.0)?,
        close: child(w!("BUTTON"), w!("&Close"), WINDOW_EX_STYLE(0), BS_PUSHBUTTON as u32, IDCANCEL.0)?,
        busy: false,
        dots: dots(),
    };
    let mut metrics = NONCLIENTMETRICSW { cbSize: size_of::<NONCLIENTMETRICSW>() as u32, ..Default::default() };
    // SAFETY: the structure is as long as we say. The font lives as long as the process, which ends with its window.
    unsafe {
        SystemParametersInfoW(
            SPI_GETNONCLIENTMETRICS,
            metrics.cbSize,
            Some((&raw mut metrics).cast()),
            SYSTEM_PARAMETERS_INFO_UPDATE_FLAGS(0),
        )?;
        let font = CreateFontIndirectW(&metrics.lfMessageFont);
        for control in [controls.text, controls.again, controls.close] {
            SendMessageW(control, WM_SETFONT, Some(WPARAM(font.0 as usize)), Some(LPARAM(1)));
        }
    }
    Ok(controls)
}

/// The text fills the window, the buttons stay at its lower right.
fn place(window: HWND, controls: &Controls) {
    let scaled = |n: i32| n * controls.dots / 96;
    let (margin, width, height) = (scaled(MARGIN), scaled(BUTTON.0), scaled(BUTTON.1));
    let mut inside = RECT::default();
    // SAFETY: all four windows are ours; `inside` lives through the call. What cannot be moved stays.
    unsafe {
        let _ = GetClientRect(window, &mut inside);
        let below = inside.bottom - height - margin;
        let _ = MoveWindow(controls.text, margin, margin, inside.right - 2 * margin, below - 2 * margin, true);
        let _ = MoveWindow(controls.again, inside.right - 2 * (width + margin), below, width, height, true);
        let _ = MoveWindow(controls.close, inside.right - width - margin, below, width, height, true);
    }
}
