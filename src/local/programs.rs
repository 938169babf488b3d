//! Where etcd, kube-apiserver and kube-controller-manager come from: `deploy/controlplane/build.sh`, that is KUBEBUILDER_ASSETS, or else a
//! build of our Go module, made once into the cache. Called by [`super::controlplane`].
//!
//! The module is carried inside this binary, so that an installed `lamina` finds it wherever it is run.
use std::path::{Path, PathBuf};
use std::process::Stdio;

use super::Error;

const MODULE: [(&str, &str); 4] = [
    ("build.sh", include_str!("../../deploy/controlplane/build.sh")),
    ("go.mod", include_str!("../../deploy/controlplane/go.mod")),
    ("go.sum", include_str!("../../deploy/controlplane/go.sum")),
    ("main.go", include_str!("../../deploy/controlplane/main.go")),
];

/// The directory of the three programs, as `build.sh` prints it. The module is laid out below `root`, and left there.
pub async fn find(root: &Path) -> Result<PathBuf, Error> {
    let module = root.join("module");
    std::fs::create_dir(&module).map_err(|source| Error::Directory { path: module.clone(), source })?;
    for (name, text) in MODULE {
        let path = module.join(name);
        std::fs::write(&path, text).map_err(|source| Error::Directory { path, source })?;
    }
    let mut build = tokio::process::Command::new("bash");
    // The script works in its own directory, where a relative path would mean something else.
    for name in ["KUBEBUILDER_ASSETS", "LAMINA_CACHE"] {
        if let Some(path) = std::env::var_os(name).and_then(|path| std::path::absolute(path).ok()) {
            build.env(name, path);
        }
    }
    let built = build
        .arg(module.join("build.sh"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        // Not `output`: that would keep the progress, and the reason of a failure, to itself.
        .spawn()
        .map_err(Error::Bash)?
        .wait_with_output()
        .await
        .map_err(Error::Bash)?;
    let line = String::from_utf8_lossy(&built.stdout);
    if built.status.success() { Ok(PathBuf::from(line.trim())) } else { Err(Error::Build) }
}
