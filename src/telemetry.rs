//! What the process says about itself: JSON logs whose level can be changed while it runs, panics as log lines, and the audit stream.
//! Installed once by `main`; [`chain`] is for whoever logs an error or shows it to a person.
//!
//! Never put a secret into a field: whatever is here ends up in somebody's log store.
use std::error::Error;

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

/// Sends logs to standard error and the audit stream to standard output, and panics to the log. `directives` as for [`LogLevel::set`].
pub fn install(directives: &str) -> anyhow::Result<LogLevel> {
    let (level, handle) = reload::Layer::new(EnvFilter::builder().parse(directives)?);
    let logs = fmt::layer().json().flatten_event(true).with_writer(std::io::stderr);
    let audit = fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(std::io::stdout);
    let is_audit = filter::filter_fn(|metadata| metadata.target() == AUDIT);
    let is_log = filter::filter_fn(|metadata| metadata.target() != AUDIT);
    tracing_subscriber::registry()
        .with(logs.with_filter(level).with_filter(is_log))
        .with(audit.with_filter(is_audit))
        .try_init()?;
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, backtrace = %std::backtrace::Backtrace::capture(), "panic: {}", panic.payload_as_str().unwrap_or("?"));
    }));
    Ok(LogLevel(handle))
}

/// An error with all its causes, `outer: middle: inner`. A cause is left out where the text before it already ends with it, as with libraries
/// that print their source themselves.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}
