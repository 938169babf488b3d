//! Temporary: leads to the pool, checks nothing.
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};

use super::context::{Context, Guarded};
use super::pool::Pool;
use crate::api::Connector;
use crate::xapi::client::{Client, Credentials, Options, Timeouts, Tls};
use crate::xapi::mirror::{Batch, Mirror, MirrorOptions};

#[derive(Debug, thiserror::Error)]
#[error("connector")]
pub struct Error;

pub async fn reconcile(stored: Arc<Guarded<Connector>>, ctx: Arc<Context>) -> Result<Action, Error> {
    let Ok(c) = &stored.0 else { return Ok(Action::await_change()) };
    let key = (c.namespace().unwrap_or_default(), c.name_any());
    if ctx.pools.get(&key).is_some() {
        return Ok(Action::requeue(ctx.pace.rest));
    }
    let secret = Api::<Secret>::namespaced(ctx.client.clone(), &key.0)
        .get(&c.spec.credentials_secret_ref.name)
        .await
        .map_err(|_| Error)?;
    let get = |k: &str| {
        secret
            .data
            .as_ref()
            .and_then(|d| d.get(k))
            .and_then(|v| String::from_utf8(v.0.clone()).ok())
            .unwrap_or_default()
    };
    let fps: Vec<[u8; 32]> = c
        .spec
        .tls
        .iter()
        .flat_map(|t| t.fingerprints_sha256.iter().flatten())
        .filter_map(|f| {
            let hex: String = f.chars().filter(|c| *c != ':').collect();
            let bytes: Vec<u8> =
                (0..hex.len() / 2).filter_map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).ok()).collect();
            bytes.try_into().ok()
        })
        .collect();
    let deadline = ctx.deadline.clone();
    let metrics = ctx.metrics.clone();
    let client = Client::new(Options {
        endpoints: c.spec.endpoints.clone(),
        credentials: Credentials { username: get("username"), password: get("password") },
        tls: if fps.is_empty() { Tls::Insecure } else { Tls::Fingerprints(fps) },
        originator: ctx.originator.clone(),
        timeouts: Timeouts::default(),
        permit: Arc::new(move || deadline.holds()),
        observer: Arc::new(move |r| {
            super::audit::call(r);
            let _m = &metrics;
        }),
    })
    .map_err(|_| Error)?;
    let (tx, mut rx) = tokio::sync::mpsc::channel::<Batch>(64);
    let pace = ctx.pace;
    let mirror = Mirror::start(
        client.clone(),
        MirrorOptions {
            poll: pace.poll,
            resync: Arc::new(move || pace.jittered(pace.resync)),
            retry: Arc::new(move |n| pace.backoff(n)),
            indexed: &["lamina.dev/layer", "lamina.dev/op", "lamina.dev/making", "lamina.dev/role"],
        },
        tx,
    );
    let weak = Arc::downgrade(&ctx);
    let k = key.clone();
    tokio::spawn(async move {
        while rx.recv().await.is_some() {
            let Some(ctx) = weak.upgrade() else { return };
            for l in ctx.layers_of(&k) {
                ctx.wake(&l);
            }
        }
    });
    ctx.pools.set(&key, Some(Arc::new(Pool::new(client, mirror))));
    let _ = ObjectRef::<Guarded<Connector>>::new_with(&key.1, ());
    Ok(Action::requeue(Duration::from_secs(600)))
}
