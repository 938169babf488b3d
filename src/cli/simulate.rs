//! `lamina simulate`: a simulated XenServer pool at a desk. Prints where it is, how to trust it, and a Secret and a Connector that name it.
//!
//! The one place that knows both the pool and what a Connector looks like; it changes neither.
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use k8s_openapi::api::core::v1::Secret;
use kube::Resource;
use kube::api::ObjectMeta;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::api::connector::Connector;
use crate::sim::clock::Clock;
use crate::sim::plan::WorldFile;
use crate::sim::serve::{Options, Sim};
use crate::sim::{control, script};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address and port of the coordinator. The pool's other hosts take the next addresses and the same port, as far as there are such.
    /// Port 0: any free one
    #[arg(long, default_value = "127.0.0.1:8443", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// User who may log in
    #[arg(long, default_value = "root")]
    user: String,
    /// The user's password. It guards nothing but a simulation
    #[arg(long, default_value = "simulated")]
    password: String,
    /// YAML file with hosts, networks, repositories, disks and templates to add to the default pool, or with `replace: true` to have
    /// in its place
    #[arg(long, value_name = "FILE")]
    world: Option<PathBuf>,
    /// YAML file with scripts for guests; without one they boot, report their tools and obey
    #[arg(long, value_name = "FILE")]
    guests: Option<PathBuf>,
    /// Address for commands by plain HTTP, which make faults, restart the pool and more. Whoever reaches it owns the pool
    #[arg(long, value_name = "ADDRESS")]
    control: Option<SocketAddr>,
    /// How much faster than a real pool's its time runs
    #[arg(long, default_value_t = 1.0, value_name = "FACTOR")]
    speed: f64,
    /// Name of the Secret and of the Connector that are printed
    #[arg(long, default_value = "lab")]
    name: String,
}

/// Runs until `stop`.
pub async fn run(args: Args, stop: CancellationToken) -> anyhow::Result<()> {
    anyhow::ensure!(args.speed.is_finite() && args.speed > 0.0, "--speed must be greater than 0");
    let world = match &args.world {
        None => WorldFile::default(),
        Some(file) => {
            serde_saphyr::from_str(&read(file)?).with_context(|| format!("{} describes no world", file.display()))?
        }
    };
    let scripts = match &args.guests {
        None => Vec::new(),
        Some(file) => script::parse(&read(file)?).with_context(|| format!("{} is no script", file.display()))?,
    };
    let (user, password) = (args.user.clone(), args.password.clone());
    let options =
        Options { listen: args.listen, clock: Clock::new(args.speed), user, password, world, ..Options::default() };
    let sim = Sim::start(options).await?;
    for script in scripts {
        script::install(&sim.pool.world.guests, script);
    }
    let mut text = introduction(&sim, &args)?;
    if let Some(address) = args.control {
        let address =
            control::listen(&sim.pool, address).await.with_context(|| format!("cannot listen on {address}"))?;
        text.insert_str(0, &format!("# Commands: http://{address}\n"));
    }
    std::io::stdout().lock().write_all(text.as_bytes()).context("cannot write to standard output")?;
    stop.cancelled().await;
    Ok(())
}

fn read(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Comments and manifests: one text that can be piped to `kubectl apply -f -` as a whole.
fn introduction(sim: &Sim, args: &Args) -> anyhow::Result<String> {
    let mut text =
        String::from("# A simulated XenServer pool. Apply what follows to a cluster that reaches these addresses:\n");
    for (host, url) in sim.hosts.iter().zip(sim.urls()) {
        text += &format!("#   {url}  SHA-256 {}\n", host.fingerprint);
    }
    for manifest in [serde_saphyr::to_string(&secret(args))?, serde_saphyr::to_string(&connector(sim, args))?] {
        text += &format!("---\n{manifest}");
    }
    Ok(text)
}

fn secret(args: &Args) -> Secret {
    let data = [("username", &args.user), ("password", &args.password)];
    Secret {
        metadata: ObjectMeta { name: Some(args.name.clone()), ..ObjectMeta::default() },
        type_: Some("kubernetes.io/basic-auth".to_owned()),
        string_data: Some(data.into_iter().map(|(k, v)| (k.to_owned(), v.clone())).collect()),
        ..Secret::default()
    }
}

/// As somebody would write it: what has a default is left to it.
fn connector(sim: &Sim, args: &Args) -> Value {
    let fingerprints: Vec<String> = sim.hosts.iter().map(|h| h.fingerprint.replace(':', "")).collect();
    json!({
        "apiVersion": Connector::api_version(&()),
        "kind": Connector::kind(&()),
        "metadata": {"name": args.name},
        "spec": {
            "endpoints": sim.urls(),
            "credentialsSecretRef": {"name": args.name},
            "tls": {"fingerprintsSHA256": fingerprints},
            "template": template(sim).unwrap_or_else(|| "name a custom template here".to_owned()),
            "storageRepository": repository(sim).unwrap_or_else(|| "name a storage repository here".to_owned()),
        },
    })
}

/// A template that packaging machines can be cloned from: custom, no disk, a network card. Of several the first by name.
fn template(sim: &Sim) -> Option<String> {
    let db = sim.pool.db();
    let flag =
        |row: &crate::sim::schema::Record, field: &str| row.get(field).and_then(Value::as_bool).unwrap_or_default();
    let fits = |vm: &crate::xapi::wire::Ref| {
        let disk = |vbd: &crate::xapi::wire::Ref| db.text("VBD", vbd, "type").is_ok_and(|kind| kind == "Disk");
        db.links("VM", vm, "VBDs").is_ok_and(|vbds| !vbds.iter().any(disk))
            && db.links("VM", vm, "VIFs").is_ok_and(|vifs| !vifs.is_empty())
    };
    let custom = db.all("VM").filter(|(r, vm)| {
        flag(vm, "is_a_template") && !flag(vm, "is_default_template") && !flag(vm, "is_a_snapshot") && fits(r)
    });
    custom.filter_map(|(_, vm)| Some(vm.get("name_label")?.as_str()?.to_owned())).min()
}

/// The pool's default repository.
fn repository(sim: &Sim) -> Option<String> {
    let db = sim.pool.db();
    let pool = db.all("pool").next().map(|(r, _)| r.clone())?;
    let sr = db.link_to("pool", &pool, "default_SR").ok()?;
    db.text("SR", &sr, "name_label").ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::connector::ConnectorSpec;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[tokio::test]
    async fn what_is_printed_names_the_pool_and_how_to_trust_it() {
        let args = Line::parse_from(["simulate", "--listen", "127.0.0.1:0"]).args;
        let sim = Sim::start(Options { listen: args.listen, ..Options::default() }).await.unwrap();
        let text = introduction(&sim, &args).unwrap();
        for (host, url) in sim.hosts.iter().zip(sim.urls()) {
            let line = format!("#   {url}  SHA-256 {}", host.fingerprint);
            assert!(host.fingerprint.len() == 95 && text.lines().any(|told| told == line), "{line}\n{text}");
        }
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        let (secret, connector) = (&documents[0], &documents[1]);
        assert_eq!((&secret["kind"], &secret["stringData"]["password"]), (&"Secret".into(), &"simulated".into()));
        let mut written: Vec<_> = connector["spec"].as_object().unwrap().keys().map(String::as_str).collect();
        written.sort_unstable();
        let expected = ["credentialsSecretRef", "endpoints", "storageRepository", "template", "tls"];
        assert_eq!(written, expected, "nothing that has a default");
        let spec: ConnectorSpec = serde_json::from_value(connector["spec"].clone()).unwrap();
        assert_eq!((spec.endpoints, spec.credentials_secret_ref.name.as_str()), (sim.urls(), "lab"));
        assert_eq!(spec.tls.unwrap().fingerprints_sha256.unwrap().len(), sim.hosts.len());
        assert!(!spec.template.contains("here") && !spec.storage_repository.contains("here"));
    }
}
