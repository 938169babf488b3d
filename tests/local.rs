//! What runs on a user's own machine: the demo in a cluster of theirs or of its own, the simulated pool, and the build of the control plane.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt};
use lamina::api::{Connector, Phase, PlatformLayer};
use lamina::local::{ControlPlane, Options, Who};
use lamina::xapi::client::{Client as Pool, Credentials, Options as ClientOptions, Tls};
use lamina::xapi::model::{Host, Sr};
use lamina::xapi::wire;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::common::{PATIENCE, cluster, eventually, installed};

/// Many times what the layers of the demo need.
const WALK: Duration = Duration::from_secs(180);

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

/// In a cluster of its own, below `scratch`; only so many times faster than a user's.
fn demo_of_its_own(scratch: &Path, speed: u8) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lamina"));
    command
        .args(["demo", &format!("--speed={speed}")])
        .env("TMPDIR", scratch)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Ctrl-C.
async fn interrupt(running: &Child) {
    let pid = running.id().expect("it runs").to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().await.expect("kill").success());
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
            let all = Api::<PlatformLayer>::all(client.clone()).list(&ListParams::default()).await.ok()?;
            all.items.iter().any(|l| l.metadata.finalizers.is_some()).then_some(())
        })
        .await;
        interrupt(&running).await;
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
    let mut demo = demo_of_its_own(scratch.path(), 5);
    let ended = tokio::time::timeout(WALK, demo.output()).await.expect("it ends").expect("the binary");
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
    // What lasts long enough to be seen, in its order.
    let unattended =
        [" of 3. Nothing is to be done", "Windows is restarted", "NGenNeeded", "Windows was rearmed", "FreezingDisk"];
    let by_hand = [
        "InstallSoftware",
        "RebootPending",
        "ShutDownGuest",
        "kubectl patch platformlayer",
        "a person approves version '1'",
        "FreezingDisk",
    ];
    for (name, words) in [("vda-unattended", unattended.as_slice()), ("xenserver-packaging", &by_hand)] {
        let mut lines = way.lines().filter(|line| line.contains(name));
        for word in words {
            assert!(lines.any(|line| line.contains(word)), "{name} never, or too early: {word}\n{way}");
        }
    }
    for secret in ["OpaqueRef:", "PRIVATE KEY", "eyJ", "password", "secret"] {
        assert!(!told.contains(secret), "{secret}: {told}");
    }
    assert_nothing_is_left_of(scratch.path());
}

/// The cluster stays for whoever wants to look at it, and goes with Ctrl-C.
#[tokio::test(flavor = "multi_thread")]
async fn the_demo_can_be_kept_and_looked_at() {
    cluster().await;
    let scratch = tempfile::tempdir().expect("a directory");
    let mut running = demo_of_its_own(scratch.path(), 20).arg("--keep").spawn().expect("the binary");
    let mut lines = BufReader::new(running.stdout.take().expect("its output")).lines();
    let kubeconfig = async {
        while let Some(line) = lines.next_line().await.expect("a line") {
            if let Some((_, file)) = line.split_once("export KUBECONFIG=") {
                return file.to_owned();
            }
        }
        panic!("it ended without a kubeconfig")
    };
    let kubeconfig = tokio::time::timeout(WALK, kubeconfig).await.expect("it comes to its end");
    assert!(Path::new(&kubeconfig).starts_with(scratch.path()), "{kubeconfig}");

    let file = Kubeconfig::read_from(&kubeconfig).expect("a kubeconfig");
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.expect("a configuration");
    let layers = Api::<PlatformLayer>::namespaced(Client::try_from(config).expect("a client"), "lamina-demo");
    let layer = layers.get("xenserver-packaging").await.expect("the layer");
    assert_eq!(layer.status.and_then(|s| s.phase), Some(Phase::Finalized));
    assert!(running.try_wait().expect("its state").is_none(), "it goes on");

    interrupt(&running).await;
    // Nobody writes to a pipe that is full.
    while let Ok(Some(_)) = lines.next_line().await {}
    let ended = running.wait_with_output().await.expect("its end");
    assert_eq!((ended.status.code(), words(&ended).as_str()), (Some(0), ""));
    assert!(layers.get_opt("xenserver-packaging").await.is_err(), "the cluster is gone");
    assert_nothing_is_left_of(scratch.path());
}

fn assert_nothing_is_left_of(scratch: &Path) {
    assert_eq!(std::fs::read_dir(scratch).expect("a directory").count(), 0, "something is left in it");
    // All its programs are told where their data is.
    let scratch = scratch.to_string_lossy();
    let processes = std::fs::read_dir("/proc").expect("processes").filter_map(|entry| entry.ok());
    let commands = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    let left: Vec<_> = commands.filter(|c| String::from_utf8_lossy(c).contains(&*scratch)).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// As somebody starts it at a desk: a pool of theirs, an account of theirs, and time that runs.
#[tokio::test]
async fn a_pool_is_simulated_as_its_user_says() {
    let scratch = tempfile::tempdir().expect("a directory");
    let world = scratch.path().join("world.yaml");
    let yaml = "{replace: true, hosts: 1, networks: [Lab], templates: [{name: blank}],
        repositories: [{name: SAN, type: lvmoiscsi, size_gib: 500}], disks: [{name: os, size_gib: 32}]}";
    std::fs::write(&world, yaml).expect("a file");
    let mut running = Command::new(env!("CARGO_BIN_EXE_lamina"))
        .args([
            "simulate",
            "--listen=127.0.0.1:0",
            "--user=packager",
            "--password=open sesame",
            "--speed=500",
            "--name=desk",
        ])
        .arg("--world")
        .arg(&world)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the binary");
    let mut lines = BufReader::new(running.stdout.take().expect("its output")).lines();
    let mut text = String::new();
    let (secret, connector) = loop {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("a line in time");
        text += &line.expect("a line").unwrap_or_else(|| panic!("it ended after {text}"));
        text.push('\n');
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap_or_default();
        if let [secret, connector] = documents.as_slice()
            && connector["spec"]["tls"]["fingerprintsSHA256"][0].is_string()
            && let Ok(connector) = serde_json::from_value::<Connector>(connector.clone())
        {
            break (secret.clone(), connector);
        }
    };
    assert_eq!((&secret["metadata"]["name"], connector.name_any().as_str()), (&json!("desk"), "desk"));
    assert_eq!((connector.spec.template.as_str(), connector.spec.storage_repository.as_str()), ("blank", "SAN"));

    // Whoever has what was printed gets in, and nobody else.
    let pin = connector.spec.tls.and_then(|tls| tls.fingerprints_sha256).expect("a fingerprint").remove(0);
    let pin: Vec<u8> = (0..32).map(|n| u8::from_str_radix(&pin[2 * n..][..2], 16).expect("hex")).collect();
    let trust = Tls::Fingerprints(vec![pin.try_into().expect("32 bytes")]);
    let user = |username: &Value, password: &Value| {
        let word = |value: &Value| value.as_str().expect("a word").to_owned();
        let credentials = Credentials { username: word(username), password: word(password) };
        let options = crate::client::options(connector.spec.endpoints.clone(), trust.clone());
        Pool::new(ClientOptions { credentials, ..options }).expect("a client")
    };
    let stranger = user(&json!("root"), &json!("simulated"));
    assert!(stranger.read().get_all_records::<Sr>().await.is_err_and(|e| e.is_refused()));
    let packager = user(&secret["stringData"]["username"], &secret["stringData"]["password"]);
    let srs = packager.read().get_all_records::<Sr>().await.expect("an answer").found;
    assert_eq!(srs.values().map(|sr| sr.name_label.as_str()).collect::<Vec<_>>(), ["SAN"]);
    let hosts = packager.read().get_all_records::<Host>().await.expect("an answer").found;
    let hosts: Vec<_> = hosts.keys().collect();
    let [host] = hosts.as_slice() else { panic!("{hosts:?}") };

    // Ten of its minutes are little more than a second.
    let began = std::time::Instant::now();
    let shown = async || {
        let time = packager.read().host_servertime(host).await.expect("a time");
        wire::parse_time(&time).expect("a time").as_second()
    };
    let first = shown().await;
    eventually("ten minutes later", async || (shown().await - first > 600).then_some(())).await;
    assert!(began.elapsed() < Duration::from_secs(60));

    interrupt(&running).await;
    let ended = running.wait_with_output().await.expect("its end");
    assert_eq!((ended.status.code(), words(&ended).as_str()), (Some(0), ""));
}

/// The script that finds or builds the control plane, where there is all that it uses but for Go.
fn without_go(scratch: &Path) -> Command {
    let bin = scratch.join("bin");
    std::fs::create_dir(&bin).expect("a directory");
    for tool in ["bash", "cat", "cut", "dirname", "sed", "sha256sum"] {
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
            .map(|dir| dir.join(tool))
            .find(|path| path.exists())
            .expect(tool);
        std::os::unix::fs::symlink(found, bin.join(tool)).expect("a link");
    }
    let mut command = Command::new(bin.join("bash"));
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/controlplane/build.sh"))
        .current_dir(scratch)
        .env_clear()
        .env("PATH", &bin)
        .env("LAMINA_CACHE", scratch.join("cache"));
    command
}

/// Who has no Go reads that, and what else would do.
#[tokio::test]
async fn the_control_plane_says_what_its_build_needs() {
    let scratch = tempfile::tempdir().expect("a directory");
    let ran = without_go(scratch.path()).output().await.expect("bash");
    let told = words(&ran);
    assert_eq!((ran.status.code(), ran.stdout.len()), (Some(1), 0), "{told}");
    assert!(told.contains("there is no 'go' on PATH") && told.contains("KUBEBUILDER_ASSETS"), "{told}");
}

/// Programs that are there are taken as they are: no Go is asked for, and no cache is begun. Of three the one that lacks is named.
#[tokio::test]
async fn a_control_plane_that_is_there_is_not_built() {
    let scratch = tempfile::tempdir().expect("a directory");
    let mut script = without_go(scratch.path());
    let assets = scratch.path().join("assets");
    std::fs::create_dir(&assets).expect("a directory");
    let link = |name: &str| std::os::unix::fs::symlink(scratch.path().join("bin/bash"), assets.join(name)).expect(name);
    ["etcd", "kube-apiserver"].into_iter().for_each(link);
    // As a user at that place would write it.
    script.env("KUBEBUILDER_ASSETS", "assets");
    let lacking = script.output().await.expect("bash");
    let told = words(&lacking);
    assert_eq!(lacking.status.code(), Some(1), "{told}");
    assert!(told.contains("lacks kube-controller-manager (envtest ships none); using our own build"), "{told}");

    link("kube-controller-manager");
    let found = script.output().await.expect("bash");
    assert_eq!((found.status.code(), words(&found).as_str()), (Some(0), ""));
    assert_eq!(String::from_utf8_lossy(&found.stdout), format!("{}\n", assets.display()));
    assert!(!scratch.path().join("cache").exists());
}
