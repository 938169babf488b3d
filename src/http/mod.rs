//! The doors for the cluster that runs us: probes, metrics and the log level. Served by `lamina run`.
//!
//! Plain HTTP without a login, as kubelet and Prometheus expect: nothing here may reveal an object's contents or change what is done to a
//! pool. The log level may be changed from inside the pod only, which takes the right to `kubectl port-forward`.
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::{ConnectInfo, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::telemetry::{Health, LogLevel, chain};

/// What the doors open on.
#[derive(Clone)]
pub struct Doors {
    pub health: Health,
    pub metrics: Arc<Registry>,
    pub level: LogLevel,
}

/// Answers on `listener` until `stop`.
pub async fn serve(listener: TcpListener, doors: Doors, stop: CancellationToken) -> std::io::Result<()> {
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/loglevel", get(level).put(set_level))
        .with_state(doors)
        .into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn livez(State(doors): State<Doors>) -> Response {
    verdict(&doors.health.dead(), "ended, restart the process")
}

async fn readyz(State(doors): State<Doors>) -> Response {
    verdict(&doors.health.missing(), "not there yet")
}

fn verdict(against: &[&str], what: &str) -> Response {
    if against.is_empty() {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{what}: {}\n", against.join(", "))).into_response()
    }
}

async fn metrics(State(doors): State<Doors>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &doors.metrics) {
        Ok(()) => ([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn level(State(doors): State<Doors>) -> Response {
    match doors.level.get() {
        Ok(directives) => format!("{directives}\n").into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", chain(&error))).into_response(),
    }
}

async fn set_level(
    State(doors): State<Doors>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    directives: String,
) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        let how = "the log level is changed from inside the pod only: kubectl port-forward to this port, and ask again through that\n";
        return (StatusCode::FORBIDDEN, how).into_response();
    }
    match doors.level.set(directives.trim()) {
        Ok(()) => {
            tracing::info!(level = directives.trim(), "log level changed");
            StatusCode::NO_CONTENT.into_response()
        }
        Err(error) => {
            (StatusCode::BAD_REQUEST, format!("{}; try `debug` or `info,lamina::xapi=trace`\n", chain(&error)))
                .into_response()
        }
    }
}
