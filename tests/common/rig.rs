//! A layer's whole surroundings for one test: a namespace, a simulated pool, a Connector that leads to it, and the controller in process.

use std::sync::{Arc, Weak};
use std::time::Duration;

use k8s_openapi::api::events::v1::Event;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use lamina::api::condition::{self, ConditionType};
use lamina::api::{Connector, Phase, PlatformLayer, PlatformLayerStatus};
use lamina::controller::lease::Deadline;
use lamina::controller::metrics::Metrics;
use lamina::controller::pace::Pace;
use lamina::controller::{self, Settings};
use lamina::demo::person::{Check, Deed, person};
use lamina::local::{ControlPlane, Options, Who};
use lamina::sim::Pool;
use lamina::sim::clock::Clock;
use lamina::sim::guest::{self, Guest, Match, Program};
use lamina::sim::serve::{self, Sim};
use lamina::telemetry::Health;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::hands::Hands;

/// Tests wait a hundredth of what production waits: the same order, the same relations.
pub const PACE: Pace = Pace {
    task: Duration::from_millis(300),
    in_flight: Duration::from_millis(600),
    capacity: Duration::from_millis(600),
    rest: Duration::from_secs(6),
    backoff: (Duration::from_millis(50), Duration::from_secs(2)),
    patience: Duration::from_secs(6),
    overdue: Duration::from_secs(72),
    settle: Duration::from_millis(50),
    credentials: Duration::from_millis(300),
    rights: Duration::from_secs(1),
    poll: Duration::from_secs(5),
    resync: Duration::from_secs(6),
    write: Duration::from_secs(10),
    jitter: 0.1,
};

/// A running controller; it dies with this, at whatever it is doing.
pub struct Running {
    task: tokio::task::JoinHandle<()>,
    metrics: Metrics,
}

impl Running {
    /// The present value of a series, named as Prometheus does; 0 for one that is not there.
    pub fn metric(&self, series: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics.registry()).expect("metrics");
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map_or(0, |n| n.parse().expect("a number"))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub struct Rig {
    pub client: Client,
    pub namespace: String,
    pub sim: Arc<Sim>,
    /// Somebody else at work on the same pool.
    pub hands: Hands,
    /// Whose namespaces are all ours.
    alone: Option<ControlPlane>,
}

impl Rig {
    /// A namespace and a pool at a hundred times the speed of life, and a Connector `lab`.
    pub async fn new() -> Self {
        Self::with(Clock::new(100.0)).await
    }

    /// In a cluster of its own, with a controller that looks after all of it.
    pub async fn alone() -> Self {
        let plane = ControlPlane::start(Options::default()).await.expect("the control plane starts");
        let client = Client::try_from(plane.config(Who::Admin).await.expect("a kubeconfig")).expect("a client");
        super::install(&client).await;
        Self::made(serve::Options { clock: Clock::new(100.0), ..serve::Options::default() }, client, Some(plane)).await
    }

    pub async fn with(clock: Clock) -> Self {
        Self::of(serve::Options { clock, ..serve::Options::default() }).await
    }

    /// A pool as these options say.
    pub async fn of(pool: serve::Options) -> Self {
        Self::made(pool, super::installed().await, None).await
    }

    async fn made(pool: serve::Options, client: Client, alone: Option<ControlPlane>) -> Self {
        // `LAMINA_LOG=lamina=debug cargo test … -- --nocapture` shows what the controller does.
        if let Ok(filter) = std::env::var("LAMINA_LOG") {
            // The first test of the process has installed it.
            let _ = lamina::telemetry::install(&filter);
        }
        super::tls();
        let namespace = super::namespace(&client).await;
        let sim = Sim::start(pool).await.expect("a simulated pool");
        let hands = Hands::of(&sim).await;
        let rig = Self { client, namespace, sim: Arc::new(sim), hands, alone };
        rig.apply(&rig.connector()).await;
        rig
    }

    /// The Secret and Connector, as a user would write them.
    pub fn connector(&self) -> String {
        let fingerprints: Vec<_> = self.sim.hosts.iter().map(|h| h.fingerprint.clone()).collect();
        let url = &self.sim.urls()[0];
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: lab}}\ntype: kubernetes.io/basic-auth\nstringData: {{username: root, password: secret}}\n---\n\
             apiVersion: lamina.dev/v1alpha1\nkind: Connector\nmetadata: {{name: lab}}\nspec:\n  endpoints: ['{url}']\n  credentialsSecretRef: {{name: lab}}\n  \
             template: packaging\n  storageRepository: Shared storage\n  tls: {{fingerprintsSHA256: {}}}\n",
            json!(fingerprints)
        )
    }

    pub async fn apply(&self, yaml: &str) {
        super::apply(&self.client, &self.namespace, yaml).await;
    }

    /// Runs the controller with exactly the rights that `deploy/` gives it.
    pub async fn run(&self) -> Running {
        self.run_with(self.settings()).await
    }

    pub async fn run_with(&self, settings: Settings) -> Running {
        self.run_as(Who::ServiceAccount { namespace: "lamina-system", name: "lamina" }, settings).await
    }

    /// Runs the controller as somebody.
    pub async fn run_as(&self, who: Who<'_>, settings: Settings) -> Running {
        let client = match &self.alone {
            None => super::client(who).await,
            Some(plane) => Client::try_from(plane.config(who).await.expect("a kubeconfig")).expect("a client"),
        };
        let metrics = settings.metrics.clone();
        let task = tokio::spawn(async move {
            controller::run(client, settings, CancellationToken::new()).await.expect("the controller runs")
        });
        Running { task, metrics }
    }

    pub fn settings(&self) -> Settings {
        Settings {
            pace: PACE,
            program: None,
            identity: format!("test-{}", uuid::Uuid::new_v4()),
            namespace: self.alone.is_none().then(|| self.namespace.clone()),
            deadline: Deadline::none(),
            metrics: Metrics::default(),
            room: Arc::default(),
            health: Health::default(),
        }
    }

    pub fn layers(&self) -> Api<PlatformLayer> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub fn connectors(&self) -> Api<Connector> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// What the guests of machines with this name prefix do, once the controller has noted their boot: a real one takes many times as long.
    pub fn guest(&self, name: &str, program: Program) {
        let pool = Arc::downgrade(&self.sim.pool);
        let patient = guest::program(move |g: Guest| {
            let (pool, program) = (pool.clone(), Arc::clone(&program));
            async move {
                noted(&pool, &g).await;
                program(g).await
            }
        });
        self.hasty_guest(name, patient);
    }

    /// What guests do that wait for nobody.
    pub fn hasty_guest(&self, name: &str, program: Program) {
        self.sim.pool.world.guests.add(Match { name: Some(format!("{name}*")), ..Match::default() }, program);
    }

    /// A Packaging layer of one version, with further spec fields.
    pub async fn layer(&self, name: &str, more: Value) {
        let mut spec = json!({
            "version": "1",
            "purpose": "Packaging",
            "connectorRef": {"name": "lab"},
            "osLayer": {"name": "Windows 11", "version": "24H2", "disk": {"name": "win11-24h2"}},
        });
        merge(&mut spec, more);
        let manifest = json!({"apiVersion": "lamina.dev/v1alpha1", "kind": "PlatformLayer", "metadata": {"name": name}, "spec": spec});
        self.apply(&manifest.to_string()).await;
    }

    pub async fn patch(&self, name: &str, spec: Value) {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.layers().patch(name, &PatchParams::default(), &patch).await.expect("a patch");
    }

    /// Waits for a layer as wanted; every status on the way obeys the rules.
    pub async fn until(&self, name: &str, what: &str, holds: impl Fn(&PlatformLayer) -> bool + Send) -> PlatformLayer {
        let found = super::until(self.layers(), name, what, |l: Option<&PlatformLayer>| {
            l.is_some_and(|l| {
                assert_eq!(condition::check_layer(l), Vec::<String>::new(), "{:#?}", l.status);
                holds(l)
            })
        })
        .await;
        found.expect("a layer")
    }

    pub async fn until_phase(&self, name: &str, phase: Phase) -> PlatformLayer {
        self.until(name, phase.as_str(), |l| l.status.as_ref().is_some_and(|s| s.phase == Some(phase))).await
    }

    /// Waits until the Connector leads to its pool.
    pub async fn connector_ready(&self) {
        super::until(self.connectors(), "lab", "ready", |c: Option<&Connector>| {
            let ready = c.and_then(|c| condition::find(&c.status.as_ref()?.conditions, ConditionType::Ready));
            ready.is_some_and(|ready| ready.status == "True")
        })
        .await;
    }

    /// Waits until Ready says this.
    pub async fn until_reason(&self, name: &str, reason: &str) -> PlatformLayer {
        self.until(name, reason, |l| ready(l).is_some_and(|(r, _)| r == reason)).await
    }

    /// Waits until the layer rests as finalized in this version.
    pub async fn until_finalized(&self, name: &str, version: &str) -> PlatformLayer {
        self.until(name, "finalized", |l| {
            let at = l.status.as_ref().and_then(|s| s.current.as_ref()).is_some_and(|c| c.version == version);
            at && ready(l).is_some_and(|(r, _)| r == "Finalized")
        })
        .await
    }

    pub async fn delete(&self, name: &str) {
        self.layers().delete(name, &DeleteParams::default()).await.expect("a deletion");
    }

    /// How many calls of this name the pool has seen.
    pub fn calls(&self, method: &str) -> u64 {
        self.sim.pool.log.counts().get(method).copied().unwrap_or_default()
    }

    /// Time passes: another layer is made in the same pool, and goes again.
    pub async fn meanwhile(&self) {
        self.layer("witness", json!({"machine": {"powerOn": false}, "deletionPolicy": "Delete"})).await;
        self.until_reason("witness", "StartMachine").await;
        self.delete("witness").await;
        self.until_gone("witness").await;
    }

    /// Notes of the events about a layer, as `reason: note`.
    pub async fn events(&self, name: &str) -> Vec<String> {
        let all = Api::<Event>::namespaced(self.client.clone(), &self.namespace).list(&ListParams::default()).await;
        let about = |e: &Event| e.regarding.as_ref().and_then(|r| r.name.as_deref()) == Some(name);
        let told = |e: Event| format!("{}: {}", e.reason.unwrap_or_default(), e.note.unwrap_or_default());
        all.expect("events").items.into_iter().filter(about).map(told).collect()
    }

    pub async fn until_gone(&self, name: &str) {
        super::until(self.layers(), name, "gone", |l: Option<&PlatformLayer>| l.is_none()).await;
    }

    /// A user's approval, as the docs say.
    pub async fn approve(&self, name: &str, version: &str) {
        self.patch(name, json!({"finalize": {"approved": version}})).await;
    }
}

/// Reason and message of Ready.
pub fn ready(l: &PlatformLayer) -> Option<(String, String)> {
    let c = condition::find(&l.status.as_ref()?.conditions, ConditionType::Ready)?;
    Some((c.reason.clone(), c.message.clone()))
}

/// The status; every layer that a test waited for has one.
pub fn status(l: &PlatformLayer) -> PlatformLayerStatus {
    l.status.clone().expect("a status")
}

/// uuid of the packaging disk.
pub fn disk(l: &PlatformLayer) -> String {
    status(l).disk.expect("a disk").uuid
}

/// uuid of the packaging machine.
pub fn machine(l: &PlatformLayer) -> String {
    status(l).machine.expect("a machine").uuid
}

/// Status and reason of a condition, `-` where there is none.
pub fn says(l: &PlatformLayer, type_: ConditionType) -> String {
    let found = condition::find(&status(l).conditions, type_).cloned();
    found.map_or("-".to_owned(), |c| format!("{}/{}", c.status, c.reason))
}

/// Tools and a reboot, a clean check, shutdown; further boots check and shut down again.
pub fn quick() -> Program {
    person(vec![vec![Deed::Install, Deed::Reboot], vec![Deed::Report(Check::default()), Deed::PowerOff]])
}

/// Tools and a reboot, then a person who does nothing.
pub fn idle() -> Program {
    person(vec![vec![Deed::Install, Deed::Reboot], vec![Deed::Stay]])
}

pub fn uid(l: &PlatformLayer) -> String {
    l.uid().expect("a uid")
}

/// Waits until the controller has noted this boot on the machine.
pub async fn noted(pool: &Weak<Pool>, guest: &Guest) {
    let boot = format!("{}@", guest.domid());
    let is_noted = |pool: Arc<Pool>| {
        let db = pool.db();
        let vm = db.by_uuid("VM", &guest.vm).ok()?;
        Some(db.field("VM", &vm, "other_config").ok()?["lamina.dev/boot"].as_str()?.starts_with(&boot))
    };
    while pool.upgrade().is_some_and(|pool| is_noted(pool) != Some(true)) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(a), Value::Object(b)) => {
            for (k, v) in b {
                merge(a.entry(k).or_insert(Value::Null), v);
            }
        }
        (a, b) => *a = b,
    }
}
