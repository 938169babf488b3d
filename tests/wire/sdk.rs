//! The SDK for Python, as published, against the simulator: any XAPI client can be pointed at it.

use std::path::PathBuf;
use std::process::Stdio;

use super::Raw;
use tokio::process::Command;

/// What is pinned is what was tried.
const SDK: &str = "XenAPI==26.17.0";

async fn run(program: PathBuf, arguments: &[&str]) {
    let out = Command::new(&program).args(arguments).stdin(Stdio::null()).output().await;
    let out =
        out.unwrap_or_else(|e| panic!("cannot run {}: {e}; this test needs python3 with venv", program.display()));
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{} {arguments:?}: {stdout}{stderr}", program.display());
}

/// Its virtual environment; made once into the target directory, from the package index.
async fn python() -> PathBuf {
    let home = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("xenapi-sdk");
    let (python, done) = (home.join("bin/python"), home.join(SDK));
    if !done.exists() {
        run("python3".into(), &["-m", "venv", "--clear", &home.to_string_lossy()]).await;
        run(python.clone(), &["-m", "pip", "install", "--quiet", "--disable-pip-version-check", SDK]).await;
        std::fs::write(done, "").unwrap();
    }
    python
}

/// xapi.md 1.2, 5 and 14 (Clients in the field): a client that nobody here wrote finds replies, records and events as it expects them.
#[tokio::test]
async fn the_python_sdk_lives_a_whole_life() {
    let raw = Raw::new().await;
    run(python().await, &[concat!(env!("CARGO_MANIFEST_DIR"), "/tests/wire/sdk.py"), &raw.url(), "root", "secret"])
        .await;
}
