//! The real binary as a child process, `lamina run`, with its log at hand. It dies with the handle.

use std::process::{ExitStatus, Stdio};

use lamina::local::Who;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::task::JoinHandle;

pub struct Binary {
    child: Child,
    logs: Lines<BufReader<ChildStderr>>,
    /// The audit log, read while it is written: nobody writes to a pipe that is full.
    audit: JoinHandle<Vec<String>>,
    url: String,
}

impl Binary {
    /// Runs as `who`, with its Lease in one namespace and its layers in another.
    pub async fn start(who: Who<'_>, lease: &str, layers: &str, more: &[&str]) -> Self {
        let kubeconfig = super::cluster().await.kubeconfig(who).await.unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_lamina"))
            .args(["run", "--listen=127.0.0.1:0", "--namespace", lease, "--watch-namespace", layers, "--kubeconfig"])
            .arg(kubeconfig)
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let logs = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let audit = tokio::spawn(async move {
            let mut all = Vec::new();
            while let Ok(Some(line)) = lines.next_line().await {
                all.push(line);
            }
            all
        });
        let mut binary = Self { child, logs, audit, url: String::new() };
        let starting = binary.line("starting").await;
        binary.url = format!("http://{}", starting["listen"].as_str().unwrap());
        binary
    }

    /// As a machine that loses its power: nothing is released.
    #[allow(dead_code, reason = "only the crash binary kills")]
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// The next log line with this message; each line before it must be JSON too.
    pub async fn line(&mut self, message: &str) -> Value {
        loop {
            let line = self.logs.next_line().await.unwrap();
            let line = line.unwrap_or_else(|| panic!("the log ended without {message:?}"));
            let line: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
            if line["message"] == message {
                return line;
            }
        }
    }

    /// Stops it as a rollout would: the Lease is released. Its log is read to the end, for nobody writes to a pipe that is full. Returns the
    /// audit log.
    pub async fn stop(mut self) -> Vec<String> {
        self.signal("-TERM").await;
        while let Ok(Some(_)) = self.logs.next_line().await {}
        assert_eq!(self.ended().await.code(), Some(0));
        self.audit.await.unwrap()
    }

    pub async fn get(&self, path: &str) -> String {
        super::tls();
        reqwest::get(format!("{}{path}", self.url)).await.unwrap().text().await.unwrap()
    }

    /// A sum over the labels of a series of `/metrics`.
    pub async fn metric(&self, series: &str) -> f64 {
        let all = self.get("/metrics").await;
        let lines = all.lines().filter(|l| l.strip_prefix(series).is_some_and(|rest| rest.starts_with(['{', ' '])));
        lines.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    pub fn pid(&self) -> String {
        self.child.id().expect("it runs").to_string()
    }

    pub async fn signal(&self, signal: &str) {
        assert!(Command::new("kill").args([signal, &self.pid()]).status().await.unwrap().success());
    }

    pub async fn ended(&mut self) -> ExitStatus {
        self.child.wait().await.unwrap()
    }
}

/// The rights of `deploy/` for an account that nobody else uses: its Lease and its writes in the audit log are its own.
pub fn rights(namespace: &str) -> String {
    format!(
        "
apiVersion: v1
kind: ServiceAccount
metadata: {{name: lamina}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: lamina-{namespace}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: lamina-controller}}
subjects: [{{kind: ServiceAccount, name: lamina, namespace: {namespace}}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {{name: lamina-leader}}
rules:
- {{apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, create, update]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {{name: lamina-leader}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: lamina-leader}}
subjects: [{{kind: ServiceAccount, name: lamina, namespace: {namespace}}}]
"
    )
}
