//! The XAPI client against a simulated pool, over TLS. Longer than other files: the list of every call is one test.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lamina::sim::faults::{Effect, Fault, Target};
use lamina::sim::serve::{Options as SimOptions, Sim};
use lamina::sim::session::Account;
use lamina::xapi::calls::{NewVbd, NewVdi, NewVif};
use lamina::xapi::client::{CallRecord, Client, Credentials, Options, Timeouts, Tls};
use lamina::xapi::error::{Error, TlsProblem};
use lamina::xapi::model::{Network, Pool, Task, TaskStatus, VbdType};
use lamina::xapi::wire::{Failure, Ref};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

mod transfers;

pub const PASSWORD: &str = "hunter2-and-more";

/// Three hosts, the coordinator first.
pub async fn pool() -> Sim {
    let mut sim = Sim::start(SimOptions { password: PASSWORD.to_owned(), ..SimOptions::default() }).await.unwrap();
    sim.hosts.sort_by_key(|host| host.address);
    sim
}

fn pin(sim: &Sim, host: usize) -> [u8; 32] {
    let bytes: Vec<u8> =
        sim.hosts[host].fingerprint.split(':').map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

fn pins(sim: &Sim) -> Tls {
    Tls::Fingerprints((0..sim.hosts.len()).map(|host| pin(sim, host)).collect())
}

pub fn options(endpoints: Vec<String>, tls: Tls) -> Options {
    Options {
        endpoints,
        credentials: Credentials { username: "root".to_owned(), password: PASSWORD.to_owned() },
        tls,
        originator: "test".to_owned(),
        timeouts: Timeouts::default(),
        permit: Arc::new(|| true),
        observer: Arc::new(|_| ()),
    }
}

pub fn client(sim: &Sim) -> Client {
    Client::new(options(sim.urls(), pins(sim))).unwrap()
}

/// A client, and all that its observer was told.
fn overheard(sim: &Sim) -> (Client, Arc<Mutex<Vec<String>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = told.clone();
    let observer = Arc::new(move |record: &CallRecord<'_>| tell.lock().unwrap().push(format!("{record:?}")));
    (Client::new(Options { observer, ..options(sim.urls(), pins(sim)) }).unwrap(), told)
}

async fn pools(client: &Client) -> Result<usize, Error> {
    Ok(client.read().get_all_records::<Pool>().await?.found.len())
}

fn logins(sim: &Sim) -> u64 {
    sim.pool.log.counts().get("session.login_with_password").copied().unwrap_or_default()
}

fn sessions(sim: &Sim) -> Vec<Ref> {
    sim.pool.db().all("session").map(|(r, _)| r.clone()).collect()
}

pub fn evict(sim: &Sim) {
    sessions(sim).iter().for_each(|session| sim.pool.db().delete("session", session));
}

/// A disk to write keys on.
fn disk(sim: &Sim) -> Ref {
    sim.pool.db().create("VDI", [("name_label", json!("disk"))])
}

/// A network told from those of the simulator's world.
pub fn network(sim: &Sim, name: &str) -> Ref {
    sim.pool.db().create("network", [("name_label", json!(name)), ("other_config", json!({"made-by": "test"}))])
}

/// A door in front of a host that counts the connections.
async fn counted(sim: &Sim, host: usize) -> (String, Arc<AtomicUsize>) {
    let (listener, count) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), Arc::new(AtomicUsize::new(0)));
    let (url, seen, to) =
        (format!("https://{}", listener.local_addr().unwrap()), count.clone(), sim.hosts[host].address);
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            seen.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut to = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });
    (url, count)
}

#[tokio::test]
async fn a_certificate_is_believed_as_the_user_said() {
    let (sim, other) = (pool().await, pool().await);
    let asked = async |url: &str, tls: Tls| pools(&Client::new(options(vec![url.to_owned()], tls)).unwrap()).await;
    let url = &sim.urls()[0];
    let ca = |sim: &Sim| Tls::CaBundle(sim.ca_pem().into_bytes());
    let problem = |result| match result {
        Err(Error::Tls { problem, .. }) => problem,
        other => panic!("{other:?}"),
    };

    assert_eq!(asked(url, ca(&sim)).await.unwrap(), 1);
    assert_eq!(asked(url, Tls::Fingerprints(vec![pin(&other, 0), pin(&sim, 0)])).await.unwrap(), 1);
    assert_eq!(asked(url, Tls::Insecure).await.unwrap(), 1);

    assert_eq!(problem(asked(url, ca(&other)).await), TlsProblem::Untrusted);
    assert_eq!(problem(asked(url, Tls::SystemRoots).await), TlsProblem::Untrusted);
    let seen = sim.hosts[0].fingerprint.replace(':', "");
    assert_eq!(problem(asked(url, Tls::Fingerprints(vec![pin(&other, 0)])).await), TlsProblem::Pin { seen });
    // The second host's certificate is trusted, and made out to another address.
    let (elsewhere, _) = counted(&sim, 1).await;
    assert_eq!(problem(asked(&elsewhere, ca(&sim)).await), TlsProblem::Name);
    assert!(Client::new(options(sim.urls(), Tls::CaBundle(b"no PEM".to_vec()))).is_err());
}

/// In a process of its own, whose system trusts this pool's hosts.
#[tokio::test]
async fn without_a_choice_the_systems_roots_are_believed() {
    const NAME: &str = "client::without_a_choice_the_systems_roots_are_believed";
    const POOL: &str = "LAMINA_TEST_POOL";
    if let Ok(url) = std::env::var(POOL) {
        let client = Client::new(options(vec![url], Tls::SystemRoots)).unwrap();
        return assert_eq!(pools(&client).await.unwrap(), 1);
    }
    let (sim, other, roots) = (pool().await, pool().await, tempfile::NamedTempFile::new().unwrap());
    std::fs::write(roots.path(), sim.ca_pem()).unwrap();
    for (sim, known) in [(&sim, true), (&other, false)] {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child
            .args(["--exact", NAME])
            .env(POOL, &sim.urls()[0])
            .env("SSL_CERT_FILE", roots.path())
            .env_remove("SSL_CERT_DIR");
        let ended = child.output().await.unwrap();
        let told = String::from_utf8_lossy(&ended.stdout);
        assert_eq!((ended.status.success(), told.contains("1 passed")), (known, known), "{told}");
        assert!(known || told.contains("Untrusted"), "{told}");
    }
}

#[tokio::test]
async fn a_lost_session_is_mended_once() {
    let sim = pool().await;
    let (client, disk) = (client(&sim), disk(&sim));
    assert_eq!(pools(&client).await.unwrap(), 1);
    evict(&sim);
    client.write().vdi_add_to_other_config(&disk, "k", "v").await.unwrap();
    assert_eq!(logins(&sim), 2);

    let invalid = Failure::new("SESSION_INVALID", ["OpaqueRef:x"]);
    let method = Target::Method("pool.get_all_records".to_owned());
    sim.pool.faults.add(Fault { target: method, effect: Effect::Refuse(invalid), times: Some(2) });
    assert!(pools(&client).await.unwrap_err().is_code("SESSION_INVALID"));
    assert_eq!(logins(&sim), 3);
}

#[tokio::test]
async fn refused_credentials_are_sent_once() {
    let sim = pool().await;
    let client = client(&sim);
    let wrong = Credentials { username: "root".to_owned(), password: "wrong".to_owned() };
    assert!(client.set_credentials(wrong.clone()).await);
    let many = futures::future::join_all((0..10).map(|_| pools(&client))).await;
    assert!(many.iter().all(|result| result.as_ref().is_err_and(Error::is_refused)));
    assert!(pools(&client).await.unwrap_err().is_refused());
    assert!(!client.set_credentials(wrong.clone()).await);
    assert_eq!(logins(&sim), 1);

    sim.pool.accounts.put(Account { name: "lamina".to_owned(), password: "new".to_owned(), role: None });
    let right = Credentials { username: "lamina".to_owned(), password: "new".to_owned() };
    assert!(client.set_credentials(right).await);
    assert_eq!(pools(&client).await.unwrap(), 1);
    // A changed pair gives the old session back.
    assert!(client.set_credentials(wrong).await);
    assert!(sessions(&sim).is_empty());
}

#[tokio::test]
async fn a_refused_pair_is_tried_again_in_time() {
    let sim = pool().await;
    let mut options = options(sim.urls(), pins(&sim));
    options.credentials.username = "late".to_owned();
    options.timeouts.refused = Duration::ZERO;
    let client = Client::new(options).unwrap();
    assert!(pools(&client).await.unwrap_err().is_refused());
    sim.pool.accounts.put(Account { name: "late".to_owned(), password: PASSWORD.to_owned(), role: None });
    assert_eq!(pools(&client).await.unwrap(), 1);
}

#[tokio::test]
async fn the_coordinator_is_followed_but_a_listed_name_comes_first() {
    let sim = pool().await;
    let urls = sim.urls();
    let at = async |endpoints: Vec<String>, tls: Tls| {
        let client = Client::new(options(endpoints, tls)).unwrap();
        pools(&client).await.map(|_| client.endpoint().unwrap())
    };
    assert_eq!(at(vec![urls[1].clone()], pins(&sim)).await.unwrap(), urls[0]);
    // The address named is not in the certificate's names here; the listed name is.
    let localhost = urls[0].replace("127.0.0.1", "localhost");
    let ca = Tls::CaBundle(sim.ca_pem().into_bytes());
    assert_eq!(at(vec![urls[1].clone(), localhost.clone()], ca).await.unwrap(), localhost);
    // A member that is trusted names a coordinator that is not.
    match at(vec![urls[1].clone()], Tls::Fingerprints(vec![pin(&sim, 1)])).await.unwrap_err() {
        Error::NoCoordinator { named, source } => {
            assert_eq!(named, urls[0]);
            assert!(matches!(*source, Error::Tls { .. }), "{source:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over_and_nothing_was_sent() {
    let sim = pool().await;
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let dead = format!("https://{nobody}");
    let found = Client::new(options(vec![dead.clone(), sim.urls()[0].clone()], pins(&sim))).unwrap();
    assert_eq!(pools(&found).await.unwrap(), 1);
    let error = pools(&Client::new(options(vec![dead], pins(&sim))).unwrap()).await.unwrap_err();
    assert!(matches!(error, Error::NotConnected { .. }), "{error:?}");
    assert!(!error.maybe_executed());
}

#[tokio::test]
async fn without_permission_nothing_is_changed() {
    let sim = pool().await;
    let leads = Arc::new(AtomicBool::new(false));
    let asked = leads.clone();
    let permit = Arc::new(move || asked.load(Ordering::SeqCst));
    let client = Client::new(Options { permit, ..options(sim.urls(), pins(&sim)) }).unwrap();
    let disk = disk(&sim);
    assert_eq!(pools(&client).await.unwrap(), 1);
    let error = client.write().vdi_add_to_other_config(&disk, "k", "v").await.unwrap_err();
    assert!(matches!(error, Error::NotLeading));
    assert!(matches!(client.start("op").vdi_clone(&disk).await, Err(Error::NotLeading)));
    assert_eq!(sim.pool.log.number(), 0);
    leads.store(true, Ordering::SeqCst);
    client.write().vdi_add_to_other_config(&disk, "k", "v").await.unwrap();
    assert_eq!(sim.pool.log.number(), 1);
}

#[tokio::test]
async fn changing_calls_share_no_connection() {
    let sim = pool().await;
    let (url, connections) = counted(&sim, 0).await;
    let client = Client::new(options(vec![url], pins(&sim))).unwrap();
    for _ in 0..3 {
        pools(&client).await.unwrap();
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    let disk = disk(&sim);
    for key in ["a", "b", "c"] {
        client.write().vdi_add_to_other_config(&disk, key, "v").await.unwrap();
    }
    assert_eq!(connections.load(Ordering::SeqCst), 4);
}

#[tokio::test]
async fn a_call_that_broke_off_is_not_sent_again() {
    let sim = pool().await;
    let (client, disk) = (client(&sim), disk(&sim));
    pools(&client).await.unwrap();
    for (n, effect) in [Effect::Drop, Effect::CutReply, Effect::TruncateReply].into_iter().enumerate() {
        let executed = effect != Effect::Drop;
        let (key, target) = (format!("k{n}"), Target::Method("VDI.add_to_other_config".to_owned()));
        sim.pool.faults.add(Fault { target, effect, times: Some(1) });
        let error = client.write().vdi_add_to_other_config(&disk, &key, "v").await.unwrap_err();
        assert!(matches!(error, Error::ConnectionLost { .. }), "{error:?}");
        assert!(error.maybe_executed());
        assert_eq!(sim.pool.log.number(), n as u64 + 1);
        let map = sim.pool.db().field("VDI", &disk, "other_config").unwrap().clone();
        assert_eq!(map.get(&key).is_some(), executed);
    }
    let again = client.write().vdi_add_to_other_config(&disk, "k1", "v").await.unwrap_err();
    assert!(again.is_code("MAP_DUPLICATE_KEY") && !again.maybe_executed());
}

#[tokio::test]
async fn a_started_call_bears_its_tag() {
    let sim = pool().await;
    let (client, disk) = (client(&sim), disk(&sim));
    let task = client.start("0123456789ab").vdi_set_name_description(&disk, "text").await.unwrap();
    let task: Task = client.read().get_record(&task).await.unwrap();
    assert_eq!(task.other_config.get("http:lamina-op").map(String::as_str), Some("0123456789ab"));
    assert_eq!(task.name_label, "Async.VDI.set_name_description");
}

#[tokio::test]
async fn every_call_is_one_that_xapi_knows() {
    let sim = pool().await;
    let client = client(&sim);
    let (read, write, start) = (client.read(), client.write(), client.start("op"));
    let (r, map, tags) =
        (Ref("OpaqueRef:nobody".to_owned()), [("k".to_owned(), "v".to_owned())].into(), ["t".to_owned()]);
    let vbd =
        NewVbd { vm: &r, vdi: &Ref::null(), userdevice: "3", bootable: false, read_only: true, kind: VbdType::Cd };
    let vif = NewVif { vm: &r, network: &r, device: "0" };
    let vdi = NewVdi { sr: &r, name: "n", description: "", size: 1 << 20 };
    let mut asked = Vec::new();
    // Nobody is there to be changed: refused for that, and not for the call's shape.
    macro_rules! refused {
        ($($door:ident.$call:ident($($arg:expr),*);)*) => { $(
            let result = $door.$call($($arg),*).await.map(|_| ());
            asked.push((stringify!($call), result));
        )* };
    }
    refused! {
        read.vm_assert_can_boot_here(&r, &r); read.host_servertime(&r);
        write.vdi_set_other_config(&r, &map); write.vdi_add_to_other_config(&r, "k", "v");
        write.vdi_remove_from_other_config(&r, "k"); write.vdi_set_tags(&r, &tags);
        write.vdi_add_tags(&r, "t"); write.vm_add_tags(&r, "t");
        write.vm_set_is_a_template(&r, false); write.vm_set_name_label(&r, "n"); write.vm_set_name_description(&r, "n");
        write.vm_set_tags(&r, &tags); write.vm_set_other_config(&r, &map); write.vm_add_to_other_config(&r, "k", "v");
        write.vm_remove_from_other_config(&r, "k"); write.vm_set_memory_limits(&r, 1, 4, 2, 3);
        write.vm_set_vcpus_max(&r, 2); write.vm_set_vcpus_at_startup(&r, 2); write.vm_set_hvm_boot_params(&r, &map);
        write.vm_set_actions_after_shutdown(&r, "destroy");
        write.vm_set_actions_after_reboot(&r, "restart"); write.vm_set_actions_after_crash(&r, "preserve");
        write.vm_set_ha_restart_priority(&r, ""); write.vm_set_affinity(&r, &r); write.vm_set_xenstore_data(&r, &map);
        write.vm_set_blocked_operations(&r, &[("destroy".to_owned(), "why".to_owned())].into());
        write.vbd_create(&vbd); write.vbd_destroy(&r); write.vif_create(&vif); write.vif_destroy(&r);
        write.task_cancel(&r); write.task_destroy(&r); write.task_add_to_other_config(&r, "k", "v"); write.task_set_status(&r, "cancelled");
        start.vdi_create(&vdi);
        start.vdi_snapshot(&r); start.vdi_clone(&r); start.vdi_resize(&r, 1 << 30); start.vdi_destroy(&r);
        start.vdi_set_name_label(&r, "n"); start.vdi_set_name_description(&r, "n"); start.vm_clone(&r, "n");
        start.vm_start(&r); start.vm_hard_shutdown(&r); start.vm_destroy(&r); start.vbd_insert(&r, &r);
        start.vbd_eject(&r); start.vbd_unplug(&r); start.sr_scan(&r);
    }
    for (call, result) in asked {
        let error = result.err();
        let shaped = error.as_ref().is_none_or(Error::is_gone);
        assert!(shaped, "{call}: {error:?}");
    }
    write.pool_sync_database().await.unwrap();
    assert!(read.permissions().await.is_ok() && read.is_superuser().await.unwrap());
    assert!(read.get_by_uuid::<Pool>("nobody").await.unwrap_err().is_gone());
}

#[tokio::test]
async fn no_secret_is_printed() {
    let sim = pool().await;
    let (client, told) = overheard(&sim);
    assert!(client.read().is_superuser().await.unwrap());
    client.read().permissions().await.unwrap();
    let first = sessions(&sim);
    let echo = Failure::new("SESSION_INVALID", first.iter().map(Ref::to_string));
    let target = Target::Method("pool.get_all_records".to_owned());
    sim.pool.faults.add(Fault { target, effect: Effect::Refuse(echo), times: Some(2) });
    let error = pools(&client).await.unwrap_err();
    let mut secrets = sessions(&sim);
    client.logout().await;
    secrets.extend(first);
    assert!(secrets.len() >= 2);

    let lines = told.lock().unwrap().join("\n");
    assert!(lines.contains("session.get_is_local_superuser") && lines.contains("session.logout"), "{lines}");
    for text in [lines, format!("{error:?} {error}"), format!("{client:?}")] {
        assert!(!text.contains(PASSWORD), "{text}");
        assert!(!secrets.iter().any(|session| text.contains(session.as_str())), "{text}");
    }
}

#[tokio::test]
async fn odd_numbers_and_odd_rows_spoil_nothing() {
    let sim = pool().await;
    let (client, good, bad) = (client(&sim), network(&sim, "good"), network(&sim, "bad"));
    sim.pool.db().set("network", &bad, "name_label", json!(7)).unwrap();
    let task = sim.pool.db().create("task", [("progress", json!(format!("{}NaN", lamina::sim::schema::ODD_FLOAT)))]);
    let records = client.read().get_all_records::<Network>().await.unwrap();
    assert!(records.found.contains_key(&good));
    assert_eq!(records.odd, [bad]);
    assert_eq!(client.read().get_record::<Task>(&task).await.unwrap().progress, 0.0);
}
