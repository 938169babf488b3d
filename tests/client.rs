//! The XAPI client and the mirror against a simulated pool, over TLS.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lamina::sim::faults::{Effect, Fault, Target};
use lamina::sim::serve::{Options as SimOptions, Sim};
use lamina::sim::session::Account;
use lamina::xapi::client::{Client, Credentials, Options, Timeouts};
use lamina::xapi::error::{Error, TlsProblem};
use lamina::xapi::look::{Scope, look};
use lamina::xapi::mirror::{Batch, Change, Health, Mirror, MirrorOptions};
use lamina::xapi::model::{Host, Network, Pool, Task};
use lamina::xapi::tls::Tls;
use lamina::xapi::wire::{Failure, Ref};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const PASSWORD: &str = "hunter2-and-more";

/// Three hosts, the coordinator first.
async fn pool() -> Sim {
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

fn options(endpoints: Vec<String>, tls: Tls) -> Options {
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

fn client(sim: &Sim) -> Client {
    Client::new(options(sim.urls(), pins(sim))).unwrap()
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

fn evict(sim: &Sim) {
    sessions(sim).iter().for_each(|session| sim.pool.db().delete("session", session));
}

/// A disk to write keys on.
fn disk(sim: &Sim) -> Ref {
    sim.pool.db().create("VDI", [("name_label", json!("disk"))])
}

fn network(sim: &Sim, name: &str) -> Ref {
    sim.pool.db().create("network", [("name_label", json!(name))])
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
async fn no_secret_is_printed() {
    let sim = pool().await;
    let told = Arc::new(Mutex::new(Vec::new()));
    let tell = told.clone();
    let observer = Arc::new(move |record: &lamina::xapi::client::CallRecord<'_>| {
        tell.lock().unwrap().push(format!("{record:?}"));
    });
    let client = Client::new(Options { observer, ..options(sim.urls(), pins(&sim)) }).unwrap();
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

#[tokio::test]
async fn a_look_sees_its_scope_and_fails_on_what_it_cannot_read() {
    let sim = pool().await;
    let client = client(&sim);
    let (sr, vm, disk) = {
        let mut db = sim.pool.db();
        let sr = db.create("SR", [("name_label", json!("sr"))]);
        let metrics = db.create("VM_metrics", [("start_time", json!("20260921T14:03:59Z"))]);
        let vm = db.create("VM", [("name_label", json!("vm")), ("metrics", json!(metrics))]);
        let disk = db.create("VDI", [("SR", json!(sr)), ("name_label", json!("disk"))]);
        db.create("VBD", [("VM", json!(vm)), ("VDI", json!(disk))]);
        db.create("VDI", [("name_label", json!("elsewhere"))]);
        (sr, vm, disk)
    };
    let view = look(&client, &Scope { disks: vec![disk.clone(), Ref::null()], ..Scope::default() }).await.unwrap();
    assert!(view.synced && view.vdis.get(&disk).is_some() && view.vms.get(&vm).is_some());
    assert_eq!((view.vbds.iter().count(), view.vm_metrics.iter().count()), (1, 0));
    assert_eq!(view.coordinator().unwrap().1.name_label, "host1");

    let scope = Scope { sr: Some(sr), all_machines: true, machines: vec![vm.clone()], ..Scope::default() };
    let view = look(&client, &scope).await.unwrap();
    assert_eq!(view.vdis.iter().map(|(r, _)| r).collect::<Vec<_>>(), [&disk]);
    let (metrics, _) = view.vm_metrics.iter().next().unwrap();
    assert_eq!(view.vm_of_metrics(metrics).unwrap().0, &vm);

    sim.pool.db().delete("VM", &vm);
    assert!(look(&client, &scope).await.unwrap().vms.get(&vm).is_none());
    sim.pool.db().set("VDI", &disk, "name_label", json!(7)).unwrap();
    assert!(matches!(look(&client, &scope).await, Err(Error::Unreadable { class: "VDI", .. })));
}

/// A mirror, and the batches it hands on.
struct Watched {
    mirror: Mirror,
    batches: mpsc::Receiver<Batch>,
    seen: Vec<Change>,
}

impl Watched {
    fn start(client: Client) -> Self {
        Self::with(client, Duration::from_secs(3600))
    }

    fn with(client: Client, resync: Duration) -> Self {
        let (out, batches) = mpsc::channel(64);
        let options = MirrorOptions {
            poll: Duration::from_secs(5),
            resync: Arc::new(move || resync),
            retry: Arc::new(|_| Duration::from_millis(50)),
            indexed: &["owner"],
        };
        Self { mirror: Mirror::start(client, options, out), batches, seen: Vec::new() }
    }

    /// Takes batches until something holds.
    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let all = async {
            while !holds(self) {
                self.seen.extend(self.batches.recv().await.unwrap().changes);
            }
        };
        tokio::time::timeout(Duration::from_secs(20), all).await.unwrap_or_else(|_| panic!("not seen: {what}"));
    }

    async fn synced(&mut self) {
        self.until("the first dump", |w| w.mirror.view().synced && w.relisted() > 0).await;
    }

    fn networks(&self) -> Vec<String> {
        let mut names: Vec<_> = self.mirror.view().networks.iter().map(|(_, n)| n.name_label.clone()).collect();
        names.sort();
        names
    }

    fn relisted(&self) -> usize {
        self.seen.iter().filter(|change| matches!(change, Change::Relisted)).count()
    }

    async fn health(&self, wanted: impl FnMut(&Health) -> bool) -> Health {
        let mut health = self.mirror.health();
        let seen = health.wait_for(wanted);
        tokio::time::timeout(Duration::from_secs(20), seen).await.expect("health").unwrap().clone()
    }
}

#[tokio::test]
async fn the_mirror_follows_the_pool() {
    let sim = pool().await;
    network(&sim, "old");
    let mut watched = Watched::start(client(&sim));
    assert!(!watched.mirror.view().synced);
    watched.synced().await;
    assert_eq!(watched.networks(), ["old"]);

    let before = watched.mirror.view();
    let new = network(&sim, "new");
    watched.until("an addition", |w| w.networks() == ["new", "old"]).await;
    assert_eq!(before.networks.iter().count(), 1, "a view that was handed out does not change");
    assert!(watched.seen.iter().any(|c| matches!(c, Change::Network(d) if d.reference == new && d.old.is_none())));

    sim.pool.db().set("network", &new, "name_label", json!("newer")).unwrap();
    watched.until("a change", |w| w.networks() == ["newer", "old"]).await;
    sim.pool.db().delete("network", &new);
    watched.until("a deletion", |w| w.networks() == ["old"]).await;

    let disk = sim.pool.db().create("VDI", [("other_config", json!({"owner": "x"}))]);
    let owned =
        |w: &Watched, by: &str| w.mirror.view().vdis.with("owner", by).map(|(r, _)| r.clone()).collect::<Vec<_>>();
    watched.until("an owner", |w| owned(w, "x") == [disk.clone()]).await;
    sim.pool.db().set("VDI", &disk, "other_config", json!({"owner": "y"})).unwrap();
    watched.until("another owner", |w| owned(w, "x").is_empty() && owned(w, "y") == [disk.clone()]).await;
    assert_eq!(watched.relisted(), 1, "events are enough");
}

#[tokio::test]
async fn metrics_name_their_machine_even_if_it_comes_after_them() {
    let sim = pool().await;
    let mut watched = Watched::start(client(&sim));
    watched.synced().await;
    let (vm, first) = {
        let mut db = sim.pool.db();
        let first = db.create("VM_guest_metrics", []);
        (db.create("VM", [("guest_metrics", json!(first))]), first)
    };
    let named = |w: &Watched, m: &Ref| {
        w.seen
            .iter()
            .any(|c| matches!(c, Change::GuestMetrics { vm: Some(v), diff } if *v == vm && diff.reference == *m))
    };
    watched.until("guest metrics", |w| named(w, &first)).await;
    // A boot brings another record.
    let second = {
        let mut db = sim.pool.db();
        db.delete("VM_guest_metrics", &first);
        let second = db.create("VM_guest_metrics", []);
        db.set("VM", &vm, "guest_metrics", json!(second)).unwrap();
        second
    };
    watched.until("its successor", |w| named(w, &second)).await;
    assert!(watched.mirror.view().vm_of_metrics(&first).is_none());
}

#[tokio::test]
async fn the_mirror_survives_the_loss_of_its_session() {
    let sim = pool().await;
    let gone = network(&sim, "gone");
    let mut watched = Watched::start(client(&sim));
    watched.synced().await;
    {
        let mut db = sim.pool.db();
        let sessions: Vec<Ref> = db.all("session").map(|(r, _)| r.clone()).collect();
        sessions.iter().for_each(|session| db.delete("session", session));
        db.delete("network", &gone);
    }
    watched.until("a second dump", |w| w.relisted() == 2 && w.networks().is_empty()).await;
    assert!(matches!(*watched.mirror.health().borrow(), Health::Synced));
}

#[tokio::test]
async fn the_mirror_starts_anew_after_a_bad_token() {
    let sim = pool().await;
    let mut watched = Watched::start(client(&sim));
    watched.synced().await;
    let failure = Failure::new("EVENT_FROM_TOKEN_PARSE_FAILURE", ["token"]);
    let target = Target::Method("event.from".to_owned());
    sim.pool.faults.add(Fault { target, effect: Effect::Refuse(failure), times: Some(1) });
    network(&sim, "wakes the poll");
    watched.until("a second dump", |w| w.relisted() == 2).await;
}

#[tokio::test]
async fn lost_deletions_are_found_by_the_counts() {
    let sim = pool().await;
    let many: Vec<Ref> = (0..600).map(|n| network(&sim, &format!("n{n}"))).collect();
    let mut watched = Watched::start(client(&sim));
    watched.synced().await;
    assert_eq!(watched.networks().len(), 600);
    {
        let mut db = sim.pool.db();
        many.iter().for_each(|network| db.delete("network", network));
        assert!(db.deletions().count() < 600, "the pool forgot some");
    }
    watched.until("all are gone", |w| w.networks().is_empty()).await;
    assert_eq!(watched.relisted(), 1, "one class was listed, not all");
}

#[tokio::test]
async fn the_mirror_survives_a_restart_and_says_so_meanwhile() {
    let sim = pool().await;
    let mut watched = Watched::start(client(&sim));
    watched.synced().await;
    sim.pool.db().flush();
    let forgotten = network(&sim, "never written out");
    watched.until("the network", |w| w.networks() == ["never written out"]).await;

    sim.pool.stop().await;
    watched.health(|h| matches!(h, Health::Lost(_))).await;
    assert!(!watched.mirror.view().synced);
    sim.pool.db().reload();
    sim.pool.resume();
    watched.until("a dump", |w| w.mirror.view().synced && w.networks().is_empty()).await;
    assert!(
        watched.seen.iter().any(|c| matches!(c, Change::Network(d) if d.reference == forgotten && d.new.is_none()))
    );
    watched.health(|h| matches!(h, Health::Synced)).await;
}

#[tokio::test]
async fn the_mirror_follows_another_coordinator() {
    let sim = pool().await;
    let client = client(&sim);
    let mut watched = Watched::start(client.clone());
    watched.synced().await;
    let second = {
        let db = sim.pool.db();
        db.all("host").find(|(_, h)| h.get("address") == Some(&json!("127.0.0.2"))).map(|(r, _)| r.clone()).unwrap()
    };
    sim.pool.stop().await;
    let master = sim.pool.db().all("pool").map(|(r, _)| r.clone()).next().unwrap();
    sim.pool.db().set("pool", &master, "master", json!(second)).unwrap();
    evict(&sim);
    sim.pool.resume();
    let named = |w: &Watched| w.mirror.view().coordinator().map(|(r, _)| r.clone());
    watched.until("the new coordinator", |w| w.mirror.view().synced && named(w) == Some(second.clone())).await;
    assert_eq!(client.endpoint().unwrap(), sim.urls()[1]);
}

#[tokio::test]
async fn a_moved_start_time_of_xapi_makes_the_mirror_start_anew() {
    let sim = pool().await;
    let mut watched = Watched::start(client(&sim));
    watched.synced().await;
    let (coordinator, _) = watched.mirror.view().coordinator().map(|(r, h)| (r.clone(), h.clone())).unwrap();
    sim.pool.db().set("host", &coordinator, "other_config", json!({"agent_start_time": "77."})).unwrap();
    watched.until("a second dump", |w| w.relisted() == 2).await;
    assert_eq!(watched.mirror.view().agent_start(), Some("77."));
    assert!(watched.seen.iter().any(|c| matches!(c, Change::Host(d) if d.reference == coordinator)));
}

#[tokio::test]
async fn everything_is_listed_anew_now_and_then() {
    let sim = pool().await;
    let mut watched = Watched::with(client(&sim), Duration::from_millis(300));
    watched.until("a resync", |w| w.relisted() >= 3).await;
    let counts = sim.pool.log.counts();
    assert!(counts.get("VM_guest_metrics.get_all_records").is_some_and(|n| *n >= 1), "{counts:?}");
}

#[tokio::test]
async fn an_unreachable_pool_is_said_to_be_lost_and_a_nudge_ends_the_pause() {
    let sim = pool().await;
    let client = client(&sim);
    client.set_credentials(Credentials { username: "root".to_owned(), password: "wrong".to_owned() }).await;
    let (out, _batches) = mpsc::channel(64);
    let options = MirrorOptions {
        poll: Duration::from_secs(5),
        resync: Arc::new(|| Duration::from_secs(3600)),
        retry: Arc::new(|_| Duration::from_secs(3600)),
        indexed: &[],
    };
    let mirror = Mirror::start(client.clone(), options, out);
    let mut health = mirror.health();
    let lost = health.wait_for(|h| matches!(h, Health::Lost(e) if e.is_refused()));
    drop(tokio::time::timeout(Duration::from_secs(20), lost).await.expect("lost").unwrap());
    client.set_credentials(Credentials { username: "root".to_owned(), password: PASSWORD.to_owned() }).await;
    mirror.nudge();
    let synced = health.wait_for(|h| matches!(h, Health::Synced));
    drop(tokio::time::timeout(Duration::from_secs(20), synced).await.expect("synced").unwrap());
    let hosts: Vec<Host> = mirror.view().hosts.iter().map(|(_, h)| Host::clone(h)).collect();
    assert_eq!(hosts.len(), 3);
}
