//! What runs on a user's own machine: the demo in a cluster of theirs, and the build of the control plane.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams};
use kube::{Api, Client};
use lamina::local::{ControlPlane, Options, Who};
use tokio::process::Command;

use crate::common::{cluster, eventually, installed};

fn demo(kubeconfig: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lamina"));
    command
        .args(["demo", "--kubeconfig"])
        .arg(kubeconfig)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

async fn namespace(client: &Client) -> Option<Namespace> {
    Api::<Namespace>::all(client.clone()).get_opt("lamina-demo").await.expect("an answer")
}

async fn definitions(client: &Client) -> usize {
    let all = Api::<CustomResourceDefinition>::all(client.clone()).list(&ListParams::default()).await;
    all.expect("a list").items.iter().filter(|crd| crd.spec.group == "lamina.dev").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_keeps_out_of_a_cluster_that_has_lamina() {
    let client = installed().await;
    let kubeconfig = cluster().await.kubeconfig(Who::Admin).await.expect("a kubeconfig");
    let refused = demo(&kubeconfig).output().await.expect("the binary");
    assert_eq!(refused.status.code(), Some(1));
    let told = words(&refused);
    assert!(told.contains("platformlayers.lamina.dev") && told.contains("without --kubeconfig"), "{told}");
    assert!(namespace(&client).await.is_none());
    assert_eq!(definitions(&client).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_removes_what_it_made_also_when_it_is_stopped_early() {
    let plane = ControlPlane::start(Options::default()).await.expect("the control plane starts");
    let kubeconfig = plane.kubeconfig(Who::Admin).await.expect("a kubeconfig");
    let client = Client::try_from(plane.config(Who::Admin).await.expect("a kubeconfig")).expect("a client");

    crate::common::apply(&client, "default", "{apiVersion: v1, kind: Namespace, metadata: {name: lamina-demo}}").await;
    let told = words(&demo(&kubeconfig).output().await.expect("the binary"));
    assert!(told.contains("namespace lamina-demo already"), "{told}");
    assert_eq!(definitions(&client).await, 0);
    Api::<Namespace>::all(client.clone()).delete("lamina-demo", &DeleteParams::default()).await.expect("deleted");
    eventually("the namespace is gone", async || namespace(&client).await.is_none().then_some(())).await;

    for layers in [false, true] {
        let running = demo(&kubeconfig).spawn().expect("the binary");
        eventually("it has begun", async || {
            if !layers {
                return (definitions(&client).await > 0).then_some(());
            }
            let all = Api::<lamina::api::PlatformLayer>::all(client.clone()).list(&ListParams::default()).await.ok()?;
            all.items.iter().any(|l| l.metadata.finalizers.is_some()).then_some(())
        })
        .await;
        let pid = running.id().expect("it runs").to_string();
        assert!(Command::new("kill").args(["-INT", &pid]).status().await.expect("kill").success());
        let ended = running.wait_with_output().await.expect("its end");
        assert!(ended.status.success(), "{}", words(&ended));
        assert_eq!((namespace(&client).await.is_none(), definitions(&client).await), (true, 0));
    }
}

/// As a user runs it, only faster: it ends by itself with all layers finalized, and leaves nothing and tells no secret.
#[tokio::test(flavor = "multi_thread")]
async fn the_demo_walks_to_its_end_and_leaves_nothing() {
    // Built, if it must be, before the clock runs.
    cluster().await;
    let scratch = tempfile::tempdir().expect("a directory");
    let running = Command::new(env!("CARGO_BIN_EXE_lamina"))
        .args(["demo", "--speed", "20"])
        .env("TMPDIR", scratch.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    let ended = tokio::time::timeout(Duration::from_secs(180), running).await.expect("it ends").expect("the binary");
    let (told, errors) = (String::from_utf8_lossy(&ended.stdout), words(&ended));
    assert_eq!((ended.status.code(), errors.as_str()), (Some(0), ""), "{told}");

    let (way, table) = told.split_once("\nLAYER ").expect("a table");
    let rows: Vec<Vec<_>> = table.lines().skip(1).map(|row| row.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 2, "{table}");
    for row in &rows {
        // Name, version, disk, and the time in each phase but the last.
        let [name, "1", disk, times @ ..] = row.as_slice() else { panic!("{table}") };
        assert!(uuid::Uuid::parse_str(disk).is_ok() && times.len() == 4 && !times.contains(&"0.0s"), "{table}");
        let done = |line: &str| line.contains(name) && line.contains("Finalized") && line.contains(disk);
        assert!(way.lines().any(done), "{way}");
    }
    for secret in ["OpaqueRef:", "PRIVATE KEY", "eyJ", "password", "secret"] {
        assert!(!told.contains(secret), "{secret}: {told}");
    }
    assert_eq!(std::fs::read_dir(scratch.path()).expect("a directory").count(), 0, "something is left in it");
    // All its programs are told where their data is.
    let scratch = scratch.path().to_string_lossy().into_owned();
    let processes = std::fs::read_dir("/proc").expect("processes").filter_map(|entry| entry.ok());
    let commands = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    let left: Vec<_> = commands.filter(|c| String::from_utf8_lossy(c).contains(&scratch)).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Who has no Go reads that, and what else would do.
#[tokio::test]
async fn the_control_plane_says_what_its_build_needs() {
    let module = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/controlplane");
    let scratch = std::env::temp_dir().join(format!("lamina-{}", uuid::Uuid::new_v4().simple()));
    // All that the script uses, but for Go.
    let bin = scratch.join("bin");
    std::fs::create_dir_all(&bin).expect("a directory");
    for tool in ["bash", "cat", "cut", "dirname", "sed", "sha256sum"] {
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .map(|dir| dir.join(tool))
            .find(|path| path.exists())
            .expect(tool);
        std::os::unix::fs::symlink(found, bin.join(tool)).expect("a link");
    }
    let ran = Command::new(bin.join("bash"))
        .arg(module.join("build.sh"))
        .env_clear()
        .env("PATH", &bin)
        .env("LAMINA_CACHE", scratch.join("cache"))
        .output()
        .await
        .expect("bash");
    std::fs::remove_dir_all(&scratch).expect("removed");
    let told = words(&ran);
    assert_eq!((ran.status.code(), ran.stdout.len()), (Some(1), 0), "{told}");
    assert!(told.contains("there is no 'go' on PATH") && told.contains("KUBEBUILDER_ASSETS"), "{told}");
}
