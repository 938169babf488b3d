//! The window of findings, as a person meets it.

use std::process::Command;

use super::installed::{fill, layer};
use super::prefix::{BITS_64, Wine};

const RUN_ONCE: &str = r"SOFTWARE\Microsoft\Windows\CurrentVersion\RunOnce";

#[test]
#[ignore = "needs wine: run guest/test-wine.sh"]
fn the_window_says_what_is_found_checks_again_and_closes() {
    let wine = Wine::new();
    fill(&wine.config_disk(), &layer(false), &[]);
    // On a desktop of wine's own, which draws frames as there is no window manager.
    wine.done("reg", &["add", r"HKCU\Software\Wine\Explorer", "/v", "Desktop", "/d", "lamina", "/f"]);
    wine.done("reg", &["add", r"HKCU\Software\Wine\Explorer\Desktops", "/v", "lamina", "/d", "900x600", "/f"]);
    wine.end();
    wine.set(BITS_64, RUN_ONCE, "VendorSetup", "REG_SZ", r"C:\setup\setup.exe /resume");
    let installer = wine.helper("helper.exe", &["hold", r"Global\_MSIExecute"]);
    let window = wine.start(&["shutdown-for-finalize", "--window", "--leave-on"]);

    let text = wine.done(r"C:\helper.exe", &["read-window"]);
    for words in [
        "This machine was not shut down: 2 things would spoil the layer.",
        "1. InstallerBusy",
        r"Seen: mutex Global\_MSIExecute is held",
        "To do: Wait, or finish the installer.",
        "2. RunOncePending",
        r"RunOnce\VendorSetup",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    if let Ok(picture) = std::env::var("LAMINA_PICTURE") {
        let took = Command::new("import").args(["-window", "root", "-crop", "720x460+0+0", &picture]).status();
        assert!(took.expect("import").success());
    }

    drop(installer);
    let text = wine.done(r"C:\helper.exe", &["press-again", "This machine was not shut down: 2"]);
    assert!(text.contains("1 thing would spoil") && !text.contains("InstallerBusy"), "{text}");
    wine.unset(BITS_64, RUN_ONCE, "VendorSetup");
    let text = wine.done(r"C:\helper.exe", &["press-again", "This machine was not shut down: 1"]);
    assert!(text.contains("Nothing is pending") && text.contains("stays on"), "{text}");
    wine.done(r"C:\helper.exe", &["press-close"]);
    assert_eq!(window.wait(), 0);

    // What it showed last is what it ends with.
    wine.set(BITS_64, RUN_ONCE, "VendorSetup", "REG_SZ", r"C:\setup\setup.exe /resume");
    let window = wine.start(&["shutdown-for-finalize", "--window", "--leave-on"]);
    assert!(wine.done(r"C:\helper.exe", &["read-window"]).contains("1 thing would spoil"));
    wine.done(r"C:\helper.exe", &["press-close"]);
    assert_eq!(window.wait(), 1);
}
