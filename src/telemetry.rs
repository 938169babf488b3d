//! What the process says about itself: JSON logs whose level can be changed while it runs, panics as log lines, the audit stream, and
//! whether it is well. Installed once by `main`; [`chain`] is for whoever logs an error or shows it to a person.
//!
//! Never put a secret into a field: whatever is here ends up in somebody's log store.
use std::collections::BTreeSet;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::Subscriber;
use tracing_subscriber::filter::{FilterExt, LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, filter, fmt, reload};

/// Target of the audit stream: one JSON line on standard output per changing XAPI call and per transition. It is written whatever the
/// log level is; whoever lost a disk reads it first.
pub const AUDIT: &str = "audit";

/// What is logged unless the user asks for something else. The libraries below speak of every connection at `info`.
pub const DEFAULT_LEVEL: &str = "info,kube=warn,hyper=warn,rustls=warn";

/// Changes the log level of the running process; `/loglevel` is its door.
#[derive(Debug, Clone)]
pub struct LogLevel(reload::Handle<EnvFilter, Registry>);

#[derive(Debug, thiserror::Error)]
pub enum LevelError {
    #[error("not a log filter")]
    Filter(#[from] filter::ParseError),
    #[error("logging is already shut down")]
    Gone(#[from] reload::Error),
}

impl LogLevel {
    /// The filter in force, in the syntax that [`LogLevel::set`] reads.
    pub fn get(&self) -> Result<String, LevelError> {
        Ok(self.0.with_current(ToString::to_string)?)
    }

    /// Sets the filter, e.g. `debug` or `info,lamina::xapi=trace`, until the process ends.
    pub fn set(&self, directives: &str) -> Result<(), LevelError> {
        Ok(self.0.reload(EnvFilter::builder().parse(directives)?)?)
    }
}

/// Logs on standard error, the audit stream on standard output. `directives` as for [`LogLevel::set`].
pub fn subscriber(directives: &str) -> Result<(impl Subscriber + Send + Sync + 'static, LogLevel), LevelError> {
    let (level, handle) = reload::Layer::new(EnvFilter::builder().parse(directives)?);
    let logs = fmt::layer().json().flatten_event(true).with_writer(std::io::stderr);
    let audit = fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(std::io::stdout);
    let is_audit = Targets::new().with_target(AUDIT, LevelFilter::INFO);
    let is_log = Targets::new().with_default(LevelFilter::TRACE).with_target(AUDIT, LevelFilter::OFF);
    let subscriber =
        tracing_subscriber::registry().with(logs.with_filter(level.and(is_log))).with(audit.with_filter(is_audit));
    Ok((subscriber, LogLevel(handle)))
}

/// Makes [`subscriber`] the process's own, and sends panics there too.
pub fn install(directives: &str) -> anyhow::Result<LogLevel> {
    let (subscriber, level) = subscriber(directives)?;
    subscriber.try_init()?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(place, %backtrace, "panic: {}", panic.payload_as_str().unwrap_or("without a message"));
    }));
    Ok(level)
}

/// Whether the process works (its tasks are alive) and is of use (what it waits for has come). The tasks tell it, the probes ask.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    missing: BTreeSet<&'static str>,
    dead: BTreeSet<&'static str>,
}

impl Health {
    /// Not ready until `what` [came](Self::came).
    pub fn awaits(&self, what: &'static str) {
        self.state().missing.insert(what);
    }

    /// What was awaited is there.
    pub fn came(&self, what: &'static str) {
        self.state().missing.remove(what);
    }

    /// To be kept by a task as long as it runs, however it ends.
    pub fn alive(&self, task: &'static str) -> Alive {
        self.state().dead.remove(task);
        Alive { health: self.clone(), task }
    }

    /// What has not come yet.
    pub fn missing(&self) -> Vec<&'static str> {
        self.state().missing.iter().copied().collect()
    }

    /// The tasks that have ended.
    pub fn dead(&self) -> Vec<&'static str> {
        self.state().dead.iter().copied().collect()
    }

    /// What a panic left behind is as good as ever: each change is a single one.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task's sign of life; see [`Health::alive`].
#[derive(Debug)]
pub struct Alive {
    health: Health,
    task: &'static str,
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.health.state().dead.insert(self.task);
    }
}

/// An error with all its causes, `outer: middle: inner`. A cause is left out where the text before it already has it, as with libraries
/// that print their source themselves.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Layered(&'static str, #[source] Option<Box<Layered>>);

    #[test]
    fn a_chain_names_each_cause_once() {
        let inner = Layered("no route", None);
        let middle = Layered("connect: no route", Some(Box::new(inner)));
        assert_eq!(chain(&Layered("log-in failed", Some(Box::new(middle)))), "log-in failed: connect: no route");
        let inner = Layered("no such file", None);
        let outer = Layered("no config (in-cluster: no; kubeconfig: (no such file))", Some(Box::new(inner)));
        assert_eq!(chain(&outer), outer.to_string());
    }
}
