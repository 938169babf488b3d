//! The mirror against a simulated pool: what it sees, and what it outlives. Longer than other files: one way to lose sight after another.

use std::sync::Arc;
use std::time::Duration;

use lamina::sim::faults::{Effect, Fault, Target};
use lamina::xapi::client::{Client, Credentials, Options, Timeouts, Tls};
use lamina::xapi::error::Error;
use lamina::xapi::mirror::{Batch, Change, Health, Mirror, MirrorOptions};
use lamina::xapi::model::Host;
use lamina::xapi::wire::{Failure, Ref};
use serde_json::json;
use tokio::sync::mpsc;

use crate::client::{PASSWORD, client, evict, network, options, pool};

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
        let view = self.mirror.view();
        let mut names: Vec<_> = view.networks.with("made-by", "test").map(|(_, n)| n.name_label.clone()).collect();
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
    assert!(before.networks.get(&new).is_none(), "a view that was handed out does not change");
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
async fn a_record_that_cannot_be_read_spoils_nothing_but_itself() {
    let sim = pool().await;
    let mut watched = Watched::start(client(&sim));
    let odd = network(&sim, "odd");
    watched.synced().await;
    sim.pool.db().set("network", &odd, "name_label", json!(7)).unwrap();
    watched.until("it cannot be read", |w| w.networks().is_empty()).await;
    network(&sim, "good");
    watched.until("the stream goes on", |w| w.networks() == ["good"]).await;
    sim.pool.db().set("network", &odd, "name_label", json!("mended")).unwrap();
    watched.until("it can be read again", |w| w.networks() == ["good", "mended"]).await;
    // It was counted all the time, so nothing seemed to be lost.
    assert_eq!(sim.pool.log.counts().get("network.get_all_records"), None);
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

/// What somebody else did a moment ago is there, and nothing was listed for it.
#[tokio::test]
async fn a_live_look_shows_all_that_was_done_before_it() {
    let sim = pool().await;
    let mut watched = Watched::start(client(&sim));
    watched.synced().await;
    for n in 0..10 {
        let made = network(&sim, &format!("n{n}"));
        assert!(watched.mirror.now().await.unwrap().networks.get(&made).is_some(), "{n}");
        sim.pool.db().delete("network", &made);
        assert!(watched.mirror.now().await.unwrap().networks.get(&made).is_none(), "{n}");
    }
    let counts = sim.pool.log.counts();
    assert!(counts.keys().all(|method| !method.contains("get_all")), "{counts:?}");
    assert_eq!(counts.get("event.inject"), Some(&20));
    watched.seen.clear();
    while let Ok(batch) = watched.batches.try_recv() {
        watched.seen.extend(batch.changes);
    }
    assert!(watched.seen.iter().all(|c| matches!(c, Change::Network(_))), "the barrier itself is no news");
}

/// A daemon that died counts its generations again from where it had written them out: a place of its earlier life proves nothing.
#[tokio::test]
async fn a_live_look_is_not_fooled_by_the_place_of_an_earlier_life() {
    let sim = pool().await;
    let mut watched = Watched::start(client(&sim));
    watched.synced().await;
    sim.pool.db().flush();
    for n in 0..50 {
        network(&sim, &format!("forgotten {n}"));
    }
    watched.until("the networks", |w| w.networks().len() == 50).await;
    sim.pool.stop().await;
    sim.pool.db().reload();
    evict(&sim);
    sim.pool.resume();
    let view = loop {
        // Until it has logged in again it fails, and never shows what is forgotten.
        if let Ok(view) = watched.mirror.now().await {
            break view;
        }
    };
    assert_eq!(view.networks.with("made-by", "test").count(), 0);
}

#[tokio::test]
async fn a_live_look_fails_on_a_record_that_it_cannot_read() {
    let sim = pool().await;
    let mut watched = Watched::start(client(&sim));
    watched.synced().await;
    let disk = sim.pool.db().create("VDI", [("name_label", json!(7))]);
    let error = watched.mirror.now().await.unwrap_err();
    assert!(matches!(&error, Error::Unreadable { class: "VDI", reference } if *reference == disk), "{error}");
}

/// One session ends in the middle of a look: the look logs in again, and nobody hears of it.
#[tokio::test]
async fn a_live_look_outlives_the_loss_of_its_session() {
    let sim = pool().await;
    let mut watched = Watched::start(client(&sim));
    watched.synced().await;
    for n in 0..5 {
        evict(&sim);
        let made = network(&sim, &format!("n{n}"));
        assert!(watched.mirror.now().await.unwrap().networks.get(&made).is_some(), "{n}");
    }
}

/// The pool forgets deletions beyond some hundreds: the counts that come with the barrier find them.
#[tokio::test]
async fn a_live_look_shows_nothing_whose_deletion_was_lost() {
    let sim = pool().await;
    let many: Vec<Ref> = (0..600).map(|n| network(&sim, &format!("n{n}"))).collect();
    let mut watched = Watched::start(client(&sim));
    watched.synced().await;
    {
        let mut db = sim.pool.db();
        many.iter().for_each(|network| db.delete("network", network));
    }
    assert_eq!(watched.mirror.now().await.unwrap().networks.with("made-by", "test").count(), 0);
}

/// Who cannot be told how the pool is now is told nothing old.
#[tokio::test]
async fn a_live_look_that_gets_no_events_fails_in_time() {
    let sim = pool().await;
    let timeouts = Timeouts { call: Duration::from_millis(500), ..Timeouts::default() };
    let hasty = Options { timeouts, ..options(sim.urls(), Tls::Insecure) };
    let mut watched = Watched::start(Client::new(hasty).unwrap());
    watched.synced().await;
    sim.pool.clock.hold("event.from/read");
    let error = watched.mirror.now().await.unwrap_err();
    assert!(matches!(error, Error::Behind), "{error}");
}
