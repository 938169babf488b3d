//! A real etcd, kube-apiserver and kube-controller-manager on loopback ports, in a directory of their own. Called by the demo and by the
//! tests. No kubelet and no scheduler: pods are never run. Never meant to keep anything: etcd does not sync its files, and all is gone
//! when the [`ControlPlane`] is.
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::{await_condition, conditions::is_created};
use kube::{Api, Client, Config};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::child::Child;
use super::{pki, programs};

/// Two minutes are forty times what it takes on two idle cores.
const READY_WITHIN: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);
/// A demo that is kept may be looked at for days, and the default is an hour.
const TOKEN_SECONDS: i64 = 7 * 24 * 3600;

/// Each write, who and on what, but no bodies: Secrets pass here.
const AUDIT_POLICY: &str = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
    "rules": [{"level": "None", "verbs": ["get", "list", "watch"]}, {"level": "Metadata"}]}"#;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot write {}", path.display())]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("cannot make a certificate")]
    Certificate(#[from] rcgen::Error),
    #[error("bash is needed to find or build the local control plane")]
    Bash(#[source] std::io::Error),
    #[error("the local control plane could not be found or built; the lines above say why")]
    Build,
    #[error("no free port on the loopback interface")]
    Port(#[source] std::io::Error),
    #[error("cannot start {program}")]
    Start { program: &'static str, source: std::io::Error },
    #[error("{program} ended while the control plane was starting; the end of its log:\n{log}")]
    Ended { program: &'static str, log: String },
    #[error("the control plane was not ready within {READY_WITHIN:?}; the end of kube-apiserver's log:\n{0}")]
    NotReady(String),
    #[error("the kubeconfig of the local control plane cannot be used")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    #[error("the local API server refused a call")]
    Api(#[from] kube::Error),
    #[error("the local API server stopped answering while it was starting")]
    Wait(#[from] kube::runtime::wait::Error),
}

#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Writes the API server's audit log, one JSON line per write, to [`ControlPlane::audit_log`].
    pub audit: bool,
}

/// Whose rights a kubeconfig carries.
#[derive(Debug, Clone, Copy)]
pub enum Who<'a> {
    /// Group `system:masters`: may do everything.
    Admin,
    /// A person with these groups and no other rights than RBAC gives them.
    User { name: &'a str, groups: &'a [&'a str] },
    /// A service account, by a token as a pod would have it; it must exist.
    ServiceAccount { namespace: &'a str, name: &'a str },
}

/// A running cluster. Dropped, or when this process dies in whatever way, its programs are killed and its directory is removed.
#[derive(Debug)]
pub struct ControlPlane {
    root: PathBuf,
    port: u16,
    programs: Vec<(&'static str, Child)>,
}

impl ControlPlane {
    /// Finds or builds the programs, starts them and waits until the API server answers, `kube-system` exists and the controller manager
    /// works. Takes seconds, or many minutes where the programs have to be built; progress of that goes to standard error.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let mut plane = Self { root: private_dir()?, port: 0, programs: Vec::new() };
        let programs = programs::find(&plane.root).await?;
        pki::write(&plane.root)?;
        let [etcd, peer, port] = free_ports()?;
        plane.port = port;
        let deadline = Instant::now() + READY_WITHIN;
        // Both at once: the API server waits for etcd.
        plane.run("etcd", &programs, plane.etcd(etcd, peer))?;
        plane.run("kube-apiserver", &programs, plane.api_server(etcd, options)?)?;
        let client = Client::try_from(plane.config(Who::Admin).await?)?;
        plane.until(deadline, answers(&client)).await?;
        // It ends where the API server is not healthy soon, as on a busy machine.
        plane.run("kube-controller-manager", &programs, plane.controller_manager()?)?;
        plane.until(deadline, works(&client)).await?;
        Ok(plane)
    }

    /// A kubeconfig file for `who`, good as long as the control plane runs, and made anew at each call.
    pub async fn kubeconfig(&self, who: Who<'_>) -> Result<PathBuf, Error> {
        let certificate = json!({"client-certificate": self.path("admin.crt"), "client-key": self.path("admin.key")});
        match who {
            Who::Admin => self.write_kubeconfig("admin", certificate),
            Who::User { name, groups } => {
                let mut user = certificate;
                user["as"] = json!(name);
                user["as-groups"] = json!(groups);
                self.write_kubeconfig(&format!("user-{name}"), user)
            }
            Who::ServiceAccount { namespace, name } => {
                let token = self.token(namespace, name).await?;
                self.write_kubeconfig(&format!("serviceaccount-{namespace}-{name}"), json!({"token": token}))
            }
        }
    }

    /// A client configuration for `who`.
    pub async fn config(&self, who: Who<'_>) -> Result<Config, Error> {
        let file = Kubeconfig::read_from(self.kubeconfig(who).await?)?;
        Ok(Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?)
    }

    /// Where the audit log is, if [`Options::audit`] asked for one.
    pub fn audit_log(&self) -> PathBuf {
        self.root.join("audit.log")
    }

    fn run(&mut self, name: &'static str, programs: &Path, args: Vec<String>) -> Result<(), Error> {
        let child = Child::start(&programs.join(name), &args, &self.root, &log(&self.root, name))
            .map_err(|source| Error::Start { program: name, source })?;
        self.programs.push((name, child));
        Ok(())
    }

    fn etcd(&self, client: u16, peer: u16) -> Vec<String> {
        let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        flags(&[
            ("data-dir", &self.path("etcd")),
            ("listen-client-urls", &client),
            ("advertise-client-urls", &client),
            ("listen-peer-urls", &peer),
            ("initial-advertise-peer-urls", &peer),
            ("initial-cluster", &format!("default={peer}")),
            ("unsafe-no-fsync", "true"),
            ("log-level", "warn"),
        ])
    }

    fn api_server(&self, etcd: u16, options: Options) -> Result<Vec<String>, Error> {
        let mut args = flags(&[
            ("etcd-servers", &format!("http://127.0.0.1:{etcd}")),
            ("bind-address", "127.0.0.1"),
            ("advertise-address", "127.0.0.1"),
            ("secure-port", &self.port.to_string()),
            // The service `kubernetes` may not point to a loopback address, and nobody asks it.
            ("endpoint-reconciler-type", "none"),
            ("service-cluster-ip-range", "10.0.0.0/24"),
            ("tls-cert-file", &self.path("server.crt")),
            ("tls-private-key-file", &self.path("server.key")),
            ("client-ca-file", &self.path("ca.crt")),
            ("authorization-mode", "RBAC"),
            // Nobody is to be held back for somebody else here, and the tests ask as fast as they can.
            ("enable-priority-and-fairness", "false"),
            ("service-account-issuer", "https://kubernetes.default.svc"),
            ("service-account-key-file", &self.path("service-account.pub")),
            ("service-account-signing-key-file", &self.path("service-account.key")),
        ]);
        if options.audit {
            self.write("audit-policy.json", AUDIT_POLICY)?;
            args.extend(flags(&[
                ("audit-policy-file", &self.path("audit-policy.json")),
                ("audit-log-path", &self.path("audit.log")),
                // MB: never begun anew, or whoever reads it afterwards misses a part.
                ("audit-log-maxsize", "4096"),
            ]));
        }
        Ok(args)
    }

    fn controller_manager(&self) -> Result<Vec<String>, Error> {
        let certificate = json!({
            "client-certificate": self.path("controller-manager.crt"), "client-key": self.path("controller-manager.key")
        });
        let kubeconfig = self.write_kubeconfig("controller-manager", certificate)?;
        let controllers = [
            "garbage-collector-controller",
            "namespace-controller",
            "serviceaccount-controller",
            "serviceaccount-token-controller",
            "clusterrole-aggregation-controller",
            // It writes what is wrong with an admission policy's expressions into the policy's status.
            "validatingadmissionpolicy-status-controller",
        ];
        Ok(flags(&[
            ("kubeconfig", &kubeconfig.display().to_string()),
            ("controllers", &controllers.join(",")),
            ("leader-elect", "false"),
            // Each controller under its own account: the rights that the API server brings along are for those.
            ("use-service-account-credentials", "true"),
            ("secure-port", "0"),
            ("root-ca-file", &self.path("ca.crt")),
            ("service-account-private-key-file", &self.path("service-account.key")),
            // A hundred tests delete a namespace each; the default lets twenty calls through a second.
            ("kube-api-qps", "200"),
            ("kube-api-burst", "400"),
        ]))
    }

    /// Waits for one step of the start, as long as all programs run.
    async fn until(&mut self, deadline: Instant, step: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
        let (root, programs) = (&self.root, &mut self.programs);
        let ended = async {
            loop {
                for (program, child) in programs.iter_mut() {
                    if child.ended() {
                        return Err(Error::Ended { program, log: tail(root, program) });
                    }
                }
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::select! {
            done = step => done,
            ended = ended => ended,
            () = tokio::time::sleep_until(deadline) => Err(Error::NotReady(tail(root, "kube-apiserver"))),
        }
    }

    async fn token(&self, namespace: &str, name: &str) -> Result<String, Error> {
        let client = Client::try_from(Box::pin(self.config(Who::Admin)).await?)?;
        let asked = TokenRequest {
            spec: Some(TokenRequestSpec { expiration_seconds: Some(TOKEN_SECONDS), ..TokenRequestSpec::default() }),
            ..TokenRequest::default()
        };
        let accounts = Api::<ServiceAccount>::namespaced(client, namespace);
        let made = accounts.create_token_request(name, &PostParams::default(), &asked).await?;
        Ok(made.status.and_then(|status| status.token).unwrap_or_default())
    }

    fn write_kubeconfig(&self, name: &str, user: Value) -> Result<PathBuf, Error> {
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "local",
            "contexts": [{"name": "local", "context": {"cluster": "local", "user": "local"}}],
            "clusters": [{"name": "local", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.port), "certificate-authority": self.path("ca.crt"),
            }}],
            "users": [{"name": "local", "user": user}],
        });
        // JSON is YAML, and kubectl reads it as such.
        self.write(&format!("{}.kubeconfig", name.replace([':', '/'], "-")), &config.to_string())
    }

    fn write(&self, name: &str, text: &str) -> Result<PathBuf, Error> {
        let path = self.root.join(name);
        // Tests ask for the same kubeconfig at the same time: nobody may read half of it.
        let draft = self.root.join(format!("{}.draft", uuid::Uuid::new_v4().simple()));
        std::fs::write(&draft, text)
            .and_then(|()| std::fs::rename(&draft, &path))
            .map_err(|source| Error::Directory { path: path.clone(), source })?;
        Ok(path)
    }

    fn path(&self, name: &str) -> String {
        self.root.join(name).display().to_string()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        // Each supervisor removes the directory; this is for the case that none was ever started.
        self.programs.clear();
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

fn private_dir() -> Result<PathBuf, Error> {
    let path = std::env::temp_dir().join(format!("lamina-{}", uuid::Uuid::new_v4().simple()));
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(&path)
        .map_err(|source| Error::Directory { path: path.clone(), source })?;
    Ok(path)
}

/// Held together until all are known, so that they differ. Somebody may take one before its program does; a start then fails and says so.
fn free_ports() -> Result<[u16; 3], Error> {
    let free = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(Error::Port);
    let held = [free()?, free()?, free()?];
    let [a, b, c] = held.each_ref().map(|listener| listener.local_addr().map_err(Error::Port));
    Ok([a?.port(), b?.port(), c?.port()])
}

fn flags(pairs: &[(&str, &str)]) -> Vec<String> {
    pairs.iter().map(|(name, value)| format!("--{name}={value}")).collect()
}

async fn answers(client: &Client) -> Result<(), Error> {
    while client.request_text(readyz()?).await.is_err() {
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Both come a moment after /readyz: the namespace whose uid is the cluster's id, and the first thing that the controller manager makes.
async fn works(client: &Client) -> Result<(), Error> {
    let namespaces = Api::<Namespace>::all(client.clone());
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), "default");
    await_condition(namespaces, "kube-system", is_created()).await?;
    await_condition(accounts, "default", is_created()).await?;
    Ok(())
}

fn readyz() -> Result<axum::http::Request<Vec<u8>>, Error> {
    axum::http::Request::get("/readyz").body(Vec::new()).map_err(|error| Error::Api(kube::Error::HttpError(error)))
}

fn log(root: &Path, program: &str) -> PathBuf {
    root.join(format!("{program}.log"))
}

fn tail(root: &Path, program: &str) -> String {
    let text = std::fs::read_to_string(log(root, program)).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n")
}
