//! What the tests share: one real control plane a process, a namespace a test, and waiting for what is to come without guessing how long.
//!
//! The control plane is a static and never dropped; its programs end with this process (`lamina::local`).
pub mod binary;
pub mod copies;
pub mod hands;
pub mod rig;
pub mod unattended;

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DynamicObject, ObjectMeta, PostParams};
use kube::runtime::wait::{Condition, await_condition};
use kube::{Api, Client, Resource, ResourceExt};
use lamina::local::{ControlPlane, Options, Who, manifests};
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;

/// Far beyond what anything takes on a loaded machine: who meets it has found a bug.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Installs the TLS provider that `main` installs, for tests that make an HTTP client of their own.
pub fn tls() {
    // An error says that it is there already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

pub async fn cluster() -> &'static ControlPlane {
    static CLUSTER: OnceCell<ControlPlane> = OnceCell::const_new();
    CLUSTER
        .get_or_init(async || ControlPlane::start(Options { audit: true }).await.expect("the control plane starts"))
        .await
}

/// A client of its own for each test: its connections belong to the test's runtime.
pub async fn client(who: Who<'_>) -> Client {
    let config = cluster().await.config(who).await.expect("a kubeconfig");
    Client::try_from(config).expect("a client")
}

pub async fn admin() -> Client {
    client(Who::Admin).await
}

/// A namespace that nobody else uses. It stays: the whole cluster goes when the tests are over.
pub async fn namespace(client: &Client) -> String {
    let fresh = Namespace {
        metadata: ObjectMeta { generate_name: Some("test-".into()), ..ObjectMeta::default() },
        ..Namespace::default()
    };
    Api::all(client.clone()).create(&PostParams::default(), &fresh).await.expect("a namespace").name_any()
}

/// Applies what must be accepted.
pub async fn apply(client: &Client, namespace: &str, yaml: &str) -> Vec<DynamicObject> {
    manifests::apply(client, namespace, yaml)
        .await
        .unwrap_or_else(|error| panic!("{}", lamina::telemetry::chain(&error)))
}

/// Applies what must be refused; returns the words that a user reads.
pub async fn refused(client: &Client, namespace: &str, yaml: &str) -> String {
    match manifests::apply(client, namespace, yaml).await {
        Ok(_) => panic!("this was accepted:\n{yaml}"),
        Err(error) => lamina::telemetry::chain(&error),
    }
}

/// Waits until an object of the API server satisfies `condition`, and returns it as it was then. Woken by a watch.
pub async fn until<K>(api: Api<K>, name: &str, what: &str, condition: impl Condition<K>) -> Option<K>
where
    K: Clone + Debug + Send + DeserializeOwned + Resource + 'static,
{
    match tokio::time::timeout(PATIENCE, await_condition(api.clone(), name, condition)).await {
        Ok(found) => found.expect("a watch"),
        Err(_) => panic!("{name} never got there: {what}; it is now {:#?}", api.get_opt(name).await),
    }
}

/// Waits for what no watch tells: asks again and again, which only costs the asking.
pub async fn eventually<T>(what: &str, look: impl AsyncFn() -> Option<T>) -> T {
    let asked = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("never happened: {what}"))
}

/// The cluster with everything that `deploy/` holds, in force. Applied once, read as kustomize would (resources only), since kubectl
/// need not be there.
pub async fn installed() -> Client {
    static INSTALLED: OnceCell<()> = OnceCell::const_new();
    let client = admin().await;
    INSTALLED
        .get_or_init(async || {
            install(&client).await;
            policies_in_force(&client).await;
        })
        .await;
    client
}

/// Applies everything that `deploy/` holds.
pub async fn install(client: &Client) {
    for yaml in resources(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy"))) {
        apply(client, "default", &yaml).await;
    }
}

fn resources(dir: &Path) -> Vec<String> {
    #[derive(serde::Deserialize)]
    struct Kustomization {
        resources: Vec<String>,
    }
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let listed: Kustomization =
        serde_saphyr::from_str(&read(&dir.join("kustomization.yaml"))).expect("a kustomization");
    listed
        .resources
        .iter()
        .map(|name| dir.join(name))
        .flat_map(|path| if path.is_dir() { resources(&path) } else { vec![read(&path)] })
        .collect()
}

/// The API server learns of policies by a watch, of their bindings by another, both in order: the last one stands for all.
async fn policies_in_force(client: &Client) {
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let unapproved = self::client(Who::User { name: "nobody-in-particular", groups: &["lamina-probe"] }).await;
    apply(client, "default", PROBE_RIGHTS).await;
    let probe: lamina::api::PlatformLayer = serde_saphyr::from_str(PROBE).expect("a layer");
    eventually("the admission policies are in force", async || {
        let asked = Api::namespaced(unapproved.clone(), "default").create(&dry_run, &probe).await;
        asked.err().filter(|error| error.to_string().contains("verb approve"))
    })
    .await;
}

const PROBE: &str = "
apiVersion: lamina.dev/v1alpha1
kind: PlatformLayer
metadata: {name: probe}
spec:
  version: '1'
  purpose: Packaging
  integrity: Skip
  connectorRef: {name: lab}
  osLayer: {name: w, version: '1', disk: {name: w}}
";

const PROBE_RIGHTS: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: lamina-probe}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: lamina-editor}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: Group, name: lamina-probe}]
";
