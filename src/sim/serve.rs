//! A pool on the network: one TLS listener per host, and the handle by which tests hold the pool.
//!
//! Every host of the world listens on its own loopback address and all on one port, for XAPI names a coordinator by its address alone
//! (`HOST_IS_SLAVE`, xapi.md 2.1). TLS 1.2 only and self-signed certificates, as a real host; the key is P-256 and not RSA, for want of a
//! generator. Called by the command line and by tests.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::clock::Clock;
use super::session::{Account, Accounts};
use super::stream::{door, tap::Tap};
use super::{Pool, faults, http, plan, task, world};
use crate::xapi::wire::Ref;

/// A port that is free on the first address may be taken on another: so many are tried.
const TRIES: usize = 20;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address}; another program may hold the port, or the system lacks this loopback address")]
    Listen {
        address: SocketAddr,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot make a host's certificate")]
    Certificate(#[from] rcgen::Error),
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    #[error("the world has no host with an address to listen on")]
    NoHost,
    #[error("there can be no such world")]
    World(#[from] plan::Mistake),
}

pub struct Options {
    /// The coordinator's address. The other hosts take the next addresses, and the same port; where this is no loopback address of version 4,
    /// there are no such addresses and the coordinator alone listens. Port 0: any that is free on all.
    pub listen: SocketAddr,
    pub clock: Clock,
    pub user: String,
    pub password: String,
    /// How long a wrong password waits for its refusal; about 5 s on a real host (xapi.md 2.1).
    pub refusal: Duration,
    /// What the world has beside the default, or in its place.
    pub world: plan::WorldFile,
}

impl Default for Options {
    fn default() -> Self {
        let (user, password) = ("root".to_owned(), "secret".to_owned());
        let listen = (Ipv4Addr::LOCALHOST, 0).into();
        Self {
            listen,
            clock: Clock::new(1.0),
            user,
            password,
            refusal: Duration::from_millis(100),
            world: plan::WorldFile::default(),
        }
    }
}

/// A host's place on the network.
#[derive(Clone, Debug)]
pub struct Host {
    pub address: SocketAddr,
    /// SHA-256 of the certificate: pairs of lower-case hexadecimal digits, colons between.
    pub fingerprint: String,
    pub certificate_pem: String,
}

/// A running pool. It stops when dropped.
pub struct Sim {
    pub pool: Arc<Pool>,
    pub hosts: Vec<Host>,
    _listeners: JoinSet<()>,
}

impl Sim {
    /// Makes the world and opens its listeners.
    ///
    /// # Errors
    /// Where a listener, a certificate or TLS cannot be had, or no such world.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let mut db = super::db::Db::default();
        let world = world::World::populate(&mut db, &options.world)?;
        let addresses = place(&mut db, options.listen.ip());
        let sockets = bind(&addresses, options.listen.port()).await?;
        let mut hosts = Vec::new();
        let mut acceptors = Vec::new();
        for (address, _) in &sockets {
            let (host, acceptor) = certify(*address)?;
            hosts.push(host);
            acceptors.push(acceptor);
        }
        record_certificates(&mut db, &hosts);
        db.flush();
        let root = Account { name: options.user, password: options.password, role: None };
        let pool = Arc::new(Pool {
            db: db.into(),
            clock: options.clock,
            world,
            faults: faults::Faults::default(),
            log: faults::Log::default(),
            accounts: Accounts::new(vec![root], options.refusal),
            jobs: task::Jobs::default(),
            process: super::process::Process::default(),
            subscriptions: super::events::Subscriptions::default(),
            certificates: hosts.iter().map(|h| (h.address.ip().to_string(), h.certificate_pem.clone())).collect(),
        });
        super::restart::stamp_hosts(&pool);
        pool.db().flush();
        pool.resume();
        pool.spawn(super::restart::keep_written(Arc::clone(&pool)));
        let mut listeners = JoinSet::new();
        for ((address, socket), acceptor) in sockets.into_iter().zip(acceptors) {
            listeners.spawn(listen(Arc::clone(&pool), address, socket, acceptor));
        }
        Ok(Self { pool, hosts, _listeners: listeners })
    }

    /// `https://…` of the coordinator at the start, then of the other hosts.
    pub fn urls(&self) -> Vec<String> {
        self.hosts.iter().map(|h| format!("https://{}", h.address)).collect()
    }

    /// What a client needs to trust every host: their certificates, one after the other.
    pub fn ca_pem(&self) -> String {
        self.hosts.iter().map(|h| h.certificate_pem.as_str()).collect()
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.pool.end();
        self.pool.world.stop();
    }
}

/// Gives the hosts their addresses, the coordinator first; returns those to listen on.
fn place(db: &mut super::db::Db, first: IpAddr) -> Vec<IpAddr> {
    let master = db.all("pool").next().and_then(|(_, row)| row.get("master")).cloned();
    let mut hosts: Vec<(bool, String, Ref)> = db
        .all("host")
        .map(|(r, row)| {
            (Some(json!(r)) != master, row.get("name_label").map(ToString::to_string).unwrap_or_default(), r.clone())
        })
        .collect();
    hosts.sort();
    let mut next = Some(first);
    let mut addresses = Vec::new();
    for (_, _, host) in hosts {
        let Some(address) = next else { break };
        // The row is there: it was just read.
        db.set("host", &host, "address", json!(address.to_string())).unwrap_or_default();
        addresses.push(address);
        next = match address {
            IpAddr::V4(ip) if ip.is_loopback() => Some(IpAddr::V4(Ipv4Addr::from(u32::from(ip).wrapping_add(1)))),
            IpAddr::V4(_) | IpAddr::V6(_) => None,
        };
    }
    addresses
}

/// One port on every address.
async fn bind(addresses: &[IpAddr], port: u16) -> Result<Vec<(SocketAddr, TcpListener)>, Error> {
    let mut last = Error::NoHost;
    for _ in 0..TRIES {
        match bind_once(addresses, port).await {
            Ok(sockets) if !sockets.is_empty() => return Ok(sockets),
            Ok(_) => return Err(Error::NoHost),
            Err(error) if port != 0 => return Err(error),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn bind_once(addresses: &[IpAddr], mut port: u16) -> Result<Vec<(SocketAddr, TcpListener)>, Error> {
    let mut sockets = Vec::new();
    for ip in addresses {
        let wanted = SocketAddr::new(*ip, port);
        let failed = |source| Error::Listen { address: wanted, source };
        let socket = TcpListener::bind(wanted).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        port = address.port();
        sockets.push((address, socket));
    }
    Ok(sockets)
}

/// A host's self-signed certificate, good for its address and for `localhost`.
fn certify(address: SocketAddr) -> Result<(Host, TlsAcceptor), Error> {
    let mut names = vec![address.ip().to_string()];
    if address.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) {
        names.push("localhost".to_owned());
    }
    let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(names)?;
    let digest = Sha256::digest(cert.der());
    let pairs: Vec<String> = digest.iter().map(|b| format!("{b:02x}")).collect();
    let host = Host { address, fingerprint: pairs.join(":"), certificate_pem: cert.pem() };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])?
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)?;
    Ok((host, TlsAcceptor::from(Arc::new(config))))
}

/// Clients may read the fingerprints off the pool itself (xapi.md 1.5).
fn record_certificates(db: &mut super::db::Db, hosts: &[Host]) {
    let by_address: HashMap<String, _> = db
        .all("host")
        .map(|(r, row)| (row.get("address").and_then(|a| a.as_str()).unwrap_or_default().to_owned(), r.clone()))
        .collect();
    for host in hosts {
        let reference = by_address.get(&host.address.ip().to_string());
        let fields = [("type", json!("host")), ("host", json!(reference)), ("fingerprint", json!(host.fingerprint))];
        db.create("Certificate", fields);
    }
}

async fn listen(pool: Arc<Pool>, at: SocketAddr, socket: TcpListener, acceptor: TlsAcceptor) {
    loop {
        // Nothing to do about a connection that failed before it began.
        let Ok((stream, _)) = socket.accept().await else { continue };
        let (pool, acceptor) = (Arc::clone(&pool), acceptor.clone());
        let inner = Arc::clone(&pool);
        // While the daemon is down this drops the stream: the client sees a connection that closes at once.
        pool.spawn(async move { connection(inner, at, stream, acceptor).await });
    }
}

async fn connection(pool: Arc<Pool>, at: SocketAddr, stream: TcpStream, acceptor: TlsAcceptor) {
    // Small replies must not wait for one another; a client that speaks no TLS is its own problem.
    let _ = stream.set_nodelay(true);
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let service = service_fn(|request| Box::pin(http::answer(Arc::clone(&pool), at.ip().to_string(), request)));
    let io = TokioIo::new(Tap::new(stream));
    let mut calls = hyper::server::conn::http1::Builder::new().serve_connection(io, service);
    // Broken connections are the instrument's trade.
    let ended = std::future::poll_fn(|cx| calls.poll_without_shutdown(cx)).await;
    let (mut stream, begun) = calls.into_parts().io.into_inner().into_parts();
    match begun {
        Some(begun) => door::serve(pool, at, stream, begun).await,
        // A peer that is gone needs no farewell.
        None if ended.is_ok() => stream.shutdown().await.unwrap_or_default(),
        None => {}
    }
}
