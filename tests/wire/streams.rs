//! Streams of disk content: xapi.md 6 and 14 (HTTP, "A failing export").
//!
//! Longer than 350 lines: one small test for each row of xapi.md 6.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use super::{Outcome, Raw, failure};
use lamina::sim::disk::pattern;
use lamina::sim::faults::{Effect, Fault, Target};
use lamina::sim::restart;
use lamina::xapi::wire::{Failure, Ref};
use reqwest::StatusCode;
use rustls::pki_types::pem::PemObject;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

const MIB: usize = 1 << 20;
const PUT: &str = "PUT /import_raw_vdi";
const GET: &str = "GET /export_raw_vdi";

/// A pool, a detached disk of 6 MiB, and its uuid.
async fn disk() -> (Raw, String, String) {
    let raw = Raw::new().await;
    let (vdi, uuid) = disk_on(&raw, "Shared storage").await;
    (raw, vdi, uuid)
}

async fn disk_on(raw: &Raw, sr: &str) -> (String, String) {
    let sr = raw.named("SR", sr).await;
    let row = json!({"SR": sr, "virtual_size": 6 * MIB, "type": "user", "sharable": false, "read_only": false, "other_config": {}});
    let vdi = raw.make("VDI.create", json!([row])).await;
    let uuid = raw.get("VDI", &vdi, "uuid").await.as_str().unwrap().to_owned();
    (vdi, uuid)
}

/// What goes onto the disk: made once, for it takes its time.
fn content() -> Vec<u8> {
    static CONTENT: LazyLock<Vec<u8>> = LazyLock::new(|| (0..3).flat_map(|block| pattern(5, block)).collect());
    CONTENT.clone()
}

/// A task of the client's own.
async fn fresh(raw: &Raw) -> String {
    raw.call("task.create", json!(["transfer", ""])).await.unwrap().as_str().unwrap().to_owned()
}

fn import(raw: &Raw, vdi: &str, task: &str) -> String {
    format!("/import_raw_vdi?session_id={}&task_id={task}&vdi={vdi}&format=raw", raw.session)
}

fn export(raw: &Raw, vdi: &str, task: &str) -> String {
    format!("/export_raw_vdi?session_id={}&task_id={task}&vdi={vdi}&format=raw", raw.session)
}

/// Status and task. The answer comes before the body went: who lets go of it then breaks the transfer.
async fn send(request: reqwest::RequestBuilder) -> Result<(u16, String), reqwest::Error> {
    let reply = request.send().await?;
    let task = reply.headers().get("task-id").map(|task| task.to_str().unwrap().to_owned());
    let status = reply.status().as_u16();
    reply.bytes().await?;
    Ok((status, task.unwrap_or_default()))
}

async fn put(raw: &Raw, target: &str, body: Vec<u8>) -> Result<(u16, String), reqwest::Error> {
    send(raw.http.put(raw.url() + target).body(body)).await
}

/// A connection of its own, spoken by hand.
async fn dial(raw: &Raw) -> TlsStream<TcpStream> {
    let mut roots = rustls::RootCertStore::empty();
    for host in &raw.sim.hosts {
        let pem = host.certificate_pem.as_bytes();
        roots.add(rustls::pki_types::CertificateDer::from_pem_slice(pem).unwrap()).unwrap();
    }
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let at = raw.sim.hosts[0].address;
    let stream = TcpStream::connect(at).await.unwrap();
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(at.ip().into(), stream).await.unwrap()
}

async fn head_of(stream: &mut TlsStream<TcpStream>) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// The control domain's VBDs of a disk.
async fn held(raw: &Raw, vdi: &str) -> Vec<Value> {
    let vbds = raw.get("VDI", vdi, "VBDs").await;
    let mut rows = Vec::new();
    for vbd in vbds.as_array().unwrap() {
        rows.push(raw.call("VBD.get_record", json!([vbd])).await.unwrap());
    }
    rows
}

fn io_error() -> Outcome {
    failure(["VDI_IO_ERROR", "Device I/O errors"])
}

fn strike(raw: &Raw, method: &str, effect: Effect) {
    raw.sim.pool.faults.add(Fault { target: Target::Method(method.into()), effect, times: Some(1) });
}

/// xapi.md 6.4: 200 comes before the body is read, the task has the verdict and the disk's reference; 6.2: meanwhile the control domain
/// holds the disk, which forbids what a user forbids.
#[tokio::test]
async fn an_import_is_answered_first_and_judged_by_its_task() {
    let (raw, vdi, uuid) = disk().await;
    let task = fresh(&raw).await;
    let mut stream = dial(&raw).await;
    let head = format!("PUT {} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", import(&raw, &uuid, &task), 6 * MIB);
    stream.write_all(head.as_bytes()).await.unwrap();
    let head = head_of(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\nConnection: close\r\n"), "{head}");
    assert!(head.contains(&format!("task-id: {task}\r\n")), "{head}");
    raw.seen("the control domain's VBD", async || (!held(&raw, &vdi).await.is_empty()).then_some(())).await;
    let vbd = held(&raw, &vdi).await.remove(0);
    assert_eq!((&vbd["mode"], &vbd["currently_attached"]), (&json!("RW"), &json!(true)));
    let vm = raw.call("VM.get_record", json!([vbd["VM"]])).await.unwrap();
    assert_eq!((&vm["is_control_domain"], vm["resident_on"].is_string()), (&json!(true), true));
    assert_eq!(raw.run("VDI.destroy", json!([vdi])).await, failure(["VDI_IN_USE", &vdi, "destroy"]));
    stream.write_all(&content()[..3 * MIB]).await.unwrap();
    raw.until("task", &task, "progress", |p| p.as_f64() > Some(0.3)).await;
    assert_eq!(raw.get("task", &task, "status").await, "pending");
    stream.write_all(&content()[3 * MIB..]).await.unwrap();
    assert_eq!(raw.wait(&task).await, Ok(json!(vdi)));
    assert_eq!(raw.get("task", &task, "result").await, format!("<value>{vdi}</value>"));
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(rest, b"", "the connection closes");
    assert_eq!(held(&raw, &vdi).await, Vec::<Value>::new());
    assert_eq!(raw.sim.pool.world.disks().read_at(&uuid, 0, 6 * MIB).unwrap(), content());
}

/// xapi.md 6.2: no length, no chunks, the end of the connection ends it; every byte of the disk, zeros included. The VBD is read-only.
#[tokio::test]
async fn an_export_ends_with_its_connection() {
    let (raw, vdi, uuid) = disk().await;
    raw.sim.pool.world.disks().write(&uuid, 2, &pattern(5, 2)).unwrap();
    raw.sim.pool.clock.hold("export_raw_vdi/block");
    let task = fresh(&raw).await;
    let mut stream = dial(&raw).await;
    stream
        .write_all(format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", export(&raw, &vdi, &task)).as_bytes())
        .await
        .unwrap();
    let head = head_of(&mut stream).await.to_lowercase();
    assert!(head.starts_with("http/1.1 200 ok\r\nconnection: close\r\n"), "{head}");
    assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
    assert!(
        head.contains("content-type: application/octet-stream\r\n")
            && head.contains(&format!("task-id: {}", task.to_lowercase()))
    );
    raw.sim.pool.clock.held("export_raw_vdi/block").await;
    let vbd = held(&raw, &vdi).await.remove(0);
    assert_eq!((&vbd["mode"], &vbd["currently_attached"]), (&json!("RO"), &json!(true)));
    raw.sim.pool.clock.unhold("export_raw_vdi/block");
    let mut body = Vec::new();
    stream.read_to_end(&mut body).await.unwrap();
    let mut expected = vec![0; 4 * MIB];
    expected.extend(pattern(5, 2));
    assert!(body == expected, "{} bytes", body.len());
    raw.wait(&task).await.unwrap();
    assert_eq!(held(&raw, &vdi).await, Vec::<Value>::new());
}

/// xapi.md 6.1: a session in query or cookie, or Basic; 401 and 403 are told to the task, too. Without a task of the client's the daemon
/// makes one and names it.
#[tokio::test]
async fn a_stream_wants_a_session_and_a_role() {
    let (raw, vdi, _) = disk().await;
    let url = format!("{}/export_raw_vdi?vdi={vdi}", raw.url());
    let sessions = raw.sim.pool.db().count("session");
    for request in [
        raw.http.get(format!("{url}&session_id={}", raw.session)),
        raw.http.get(&url).header("Cookie", format!("a=b; session_id={}", raw.session)),
        raw.http.get(&url).header("Authorization", "Basic cm9vdDpzZWNyZXQ="),
    ] {
        let reply = request.send().await.unwrap();
        assert_eq!(reply.status(), 200);
        let own = reply.headers()["task-id"].to_str().unwrap().to_owned();
        assert_eq!(reply.bytes().await.unwrap().len(), 6 * MIB);
        raw.wait(&own).await.unwrap();
        assert_eq!(raw.get("task", &own, "name_label").await, "Exporting raw VDI");
    }
    for (query, header) in
        [("", "x: y"), ("&session_id=OpaqueRef:x", "x: y"), ("", "Authorization: Basic cm9vdDp3cm9uZw==")]
    {
        let task = fresh(&raw).await;
        let (name, value) = header.split_once(": ").unwrap();
        let request = raw.http.get(format!("{url}&task_id={task}{query}")).header(name, value);
        let reply = request.send().await.unwrap();
        assert_eq!(reply.status(), 401);
        assert!(reply.headers().contains_key("www-authenticate"));
        assert_eq!(raw.wait(&task).await, failure(["SESSION_AUTHENTICATION_FAILED"]));
    }
    assert_eq!(raw.sim.pool.db().count("session"), sessions, "a session for one request ends with it");
    let role = Some("vm-operator".to_owned());
    raw.sim.pool.accounts.put(lamina::sim::session::Account { name: "op".into(), password: "p".into(), role });
    let operator = raw.login("op", "p").await.unwrap();
    let task = fresh(&raw).await;
    let target = format!("/import_raw_vdi?session_id={operator}&task_id={task}&vdi={vdi}");
    assert_eq!(put(&raw, &target, content()).await.unwrap().0, 403);
    let why = raw.wait(&task).await.unwrap_err();
    assert_eq!(why[..2], ["RBAC_PERMISSION_DENIED", "http/put_import_raw_vdi"]);
}

/// xapi.md 6.1: 302 to a host that sees the repository, with path and query; the task is left to that host.
#[tokio::test]
async fn a_host_that_does_not_see_the_disk_sends_the_client_on() {
    let raw = Raw::new().await;
    let (vdi, uuid) = disk_on(&raw, "Local storage on host2").await;
    let task = fresh(&raw).await;
    let plain = crate::common::hands::http(&raw.sim);
    let target = import(&raw, &vdi, &task);
    let client = reqwest::Client::builder()
        .tls_certs_only(reqwest::Certificate::from_pem_bundle(raw.sim.ca_pem().as_bytes()).unwrap())
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap();
    let number = raw.sim.pool.log.number();
    let reply = client.put(raw.url() + &target).body(Vec::new()).send().await.unwrap();
    assert_eq!(reply.status(), StatusCode::FOUND);
    let to = reply.headers()["location"].to_str().unwrap().to_owned();
    assert_eq!(to, raw.sim.urls()[1].clone() + &target);
    assert_eq!(raw.sim.pool.log.number(), number, "nothing was changed");
    assert_eq!(raw.get("task", &task, "status").await, "pending");
    assert_eq!(send(plain.put(to).body(content())).await.unwrap().0, 200);
    assert_eq!(raw.wait(&task).await, Ok(json!(vdi)));
    assert_eq!(raw.sim.pool.world.disks().read_at(&uuid, 0, 6 * MIB).unwrap(), content());
    let pbds = raw.get("SR", raw.get("VDI", &vdi, "SR").await.as_str().unwrap(), "PBDs").await;
    raw.call("PBD.unplug", json!([pbds[0]])).await.unwrap();
    let task = fresh(&raw).await;
    assert_eq!(put(&raw, &import(&raw, &vdi, &task), content()).await.unwrap().0, 500);
    assert_eq!(raw.wait(&task).await.unwrap_err()[0], "SR_HAS_NO_PBDS");
}

/// xapi.md 6.2, 6.4, 14 (HTTP): what is told before the 200.
#[tokio::test]
async fn chunks_unknown_formats_and_unknown_disks_are_told_at_once() {
    let (raw, vdi, uuid) = disk().await;
    let before = raw.sim.pool.digest(&uuid);
    let own = fresh(&raw).await;
    let frame = hyper::body::Frame::data(hyper::body::Bytes::from(content()));
    let chunks = futures::stream::iter([Ok::<_, std::io::Error>(frame)]);
    let body = reqwest::Body::wrap(http_body_util::StreamBody::new(chunks));
    let reply = raw.http.put(raw.url() + &import(&raw, &vdi, &own)).body(body).send().await.unwrap();
    assert_eq!(reply.status(), 404);
    assert_eq!(raw.wait(&own).await.unwrap_err()[0], "INTERNAL_ERROR");
    for (path, other) in [("import_raw_vdi", "cow"), ("export_raw_vdi", "cow"), ("export_raw_vdi", "vhd")] {
        let own = fresh(&raw).await;
        let url = format!("{}/{path}?session_id={}&task_id={own}&vdi={vdi}&format={other}", raw.url(), raw.session);
        let request = if path.starts_with('i') { raw.http.put(url).body("x") } else { raw.http.get(url) };
        assert_eq!(request.send().await.unwrap().status(), 404);
        assert_eq!(raw.wait(&own).await, failure(["INTERNAL_ERROR", &format!("Unknown format {other}")]));
    }
    let own = fresh(&raw).await;
    for target in [import(&raw, "OpaqueRef:x", &own), format!("/import_raw_vdi?session_id={}", raw.session)] {
        assert_eq!(put(&raw, &target, content()).await.unwrap().0, 500);
    }
    assert_eq!(raw.http.get(raw.url() + &export(&raw, "x", &own)).send().await.unwrap().status(), 500);
    assert_eq!(raw.get("task", &own, "status").await, "pending", "nobody tells it");
    let fat = raw.http.get(raw.url() + &export(&raw, &vdi, &own)).header("x-fill", "x".repeat(1024));
    assert_eq!(fat.send().await.unwrap().status(), 431);
    assert_eq!(raw.sim.pool.digest(&uuid), before);
}

/// xapi.md 6.4: what is wrong with the disk or the body comes after the 200, in the task.
#[tokio::test]
async fn an_import_fails_in_its_task() {
    let (raw, vdi, uuid) = disk().await;
    let attempt = async |vdi: &str, body: Vec<u8>| {
        let task = fresh(&raw).await;
        // Some are refused while they are still sent.
        let sent = put(&raw, &import(&raw, vdi, &task), body).await;
        assert!(sent.is_err() || sent.is_ok_and(|(status, _)| status == 200));
        raw.wait(&task).await
    };
    // A client that probes for a redirect: no body, no task.
    let probe = format!("/import_raw_vdi?session_id={}&vdi={vdi}", raw.session);
    let (status, own) = put(&raw, &probe, Vec::new()).await.unwrap();
    assert_eq!(status, 200);
    assert_eq!(raw.wait(&own).await, io_error());
    let mut long = content();
    long.extend([7; 10]);
    assert_eq!(attempt(&vdi, long).await, io_error());
    assert_eq!(
        raw.sim.pool.world.disks().read_at(&uuid, 0, 6 * MIB).unwrap(),
        content(),
        "as much as there was room for"
    );
    assert_eq!(attempt(&vdi, vec![9; 3]).await, Ok(json!(vdi)));
    assert_eq!(raw.sim.pool.world.disks().read_at(&uuid, 0, 4).unwrap()[..3], [9; 3]);
    let sr = Ref(raw.named("SR", "Shared storage").await);
    let size = raw.get("SR", sr.as_str(), "physical_size").await;
    let (empty, _) = disk_on(&raw, "Shared storage").await;
    raw.sim.pool.db().set("SR", &sr, "physical_size", json!(1)).unwrap();
    assert_eq!(attempt(&empty, content()).await, io_error(), "no room");
    assert_eq!(attempt(&vdi, content()).await, Ok(json!(vdi)), "it has its blocks already");
    raw.sim.pool.db().set("SR", &sr, "physical_size", size).unwrap();
    let iso = raw.named("VDI", "guest-tools.iso").await;
    assert_eq!(attempt(&iso, content()).await, failure(["VDI_READONLY", &iso]));
    let (machine, os) = raw.machine("m").await;
    raw.run("VM.start", json!([machine, false, false])).await.unwrap();
    assert_eq!(attempt(&os, content()).await, failure(["VDI_IN_USE", &os]));
    let leaked = raw.sim.pool.leak_vbd(&Ref(vdi.clone()));
    assert_eq!(attempt(&vdi, content()).await, failure(["VDI_IN_USE", &vdi]));
    raw.run("VBD.unplug", json!([leaked])).await.unwrap();
    raw.sim.pool.world.disks().remove(&uuid).unwrap();
    assert_eq!(attempt(&vdi, content()).await.unwrap_err()[0], "SR_BACKEND_FAILURE_46");
}

/// A client that hangs up: the blocks that came are on the disk, the rest is as it was, and the disk is let go (xapi.md 8: partial content).
#[tokio::test]
async fn an_import_that_breaks_off_leaves_whole_blocks() {
    let (raw, vdi, uuid) = disk().await;
    let task = fresh(&raw).await;
    let mut stream = dial(&raw).await;
    let head = format!("PUT {} HTTP/1.1\r\nContent-Length: {}\r\n\r\n", import(&raw, &vdi, &task), 6 * MIB);
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&content()[..5 * MIB]).await.unwrap();
    stream.shutdown().await.unwrap();
    stream.read_to_end(&mut Vec::new()).await.unwrap();
    assert_eq!(raw.wait(&task).await, io_error());
    let mut expected = content()[..4 * MIB].to_vec();
    expected.extend(vec![0; 2 * MIB]);
    assert!(raw.sim.pool.world.disks().read_at(&uuid, 0, 6 * MIB).unwrap() == expected);
    assert_eq!(held(&raw, &vdi).await, Vec::<Value>::new());
}

/// xapi.md 6.2, 14: 200, and a second answer inside the body in the disk's place.
#[tokio::test]
async fn a_failing_export_holds_a_second_answer() {
    let (raw, vdi, uuid) = disk().await;
    strike(&raw, GET, Effect::Refuse(Failure::new("SR_BACKEND_FAILURE_453", ["", "tapdisk", ""])));
    for code in ["SR_BACKEND_FAILURE_453", "SR_BACKEND_FAILURE_46"] {
        let task = fresh(&raw).await;
        let reply = raw.http.get(raw.url() + &export(&raw, &vdi, &task)).send().await.unwrap();
        assert_eq!(reply.status(), 200);
        let body = reply.text().await.unwrap();
        assert!(body.starts_with("HTTP/1.1 500 ") && body.contains(code), "{body}");
        assert_eq!(raw.wait(&task).await.unwrap_err()[0], code);
        // From here on for a reason of its own: the disk is gone from the storage.
        raw.sim.pool.world.disks().remove(&uuid).unwrap_or_default();
    }
}

/// xapi.md 6.2: beside a writer on the same host an export succeeds, torn; on another host storage refuses.
#[tokio::test]
async fn an_export_beside_a_writer_depends_on_the_host() {
    let raw = Raw::new().await;
    let (machine, os) = raw.machine("m").await;
    let hosts = raw.call("host.get_all", json!([])).await.unwrap();
    let address = raw.sim.hosts[0].address.ip().to_string();
    for host in hosts.as_array().unwrap() {
        let here = raw.get("host", host.as_str().unwrap(), "address").await == json!(address);
        raw.run("VM.start_on", json!([machine, host, false, false])).await.unwrap();
        let task = fresh(&raw).await;
        strike(&raw, GET, Effect::CutBody(0));
        raw.http.get(raw.url() + &export(&raw, &os, &task)).send().await.unwrap().bytes().await.unwrap();
        let code = if here { "VDI_IO_ERROR" } else { "SR_BACKEND_FAILURE_46" };
        assert_eq!(raw.wait(&task).await.unwrap_err()[0], code, "here: {here}");
        raw.run("VM.hard_shutdown", json!([machine])).await.unwrap();
    }
}

/// The instrument itself: a `PUT` is a changing call with a number, an export is not; both are in the log, without their session.
#[tokio::test]
async fn streams_are_numbered_and_logged() {
    let (raw, vdi, _) = disk().await;
    raw.sim.pool.log.reset();
    let (into, from) = (fresh(&raw).await, fresh(&raw).await);
    put(&raw, &import(&raw, &vdi, &into), content()).await.unwrap();
    raw.wait(&into).await.unwrap();
    raw.http.get(raw.url() + &export(&raw, &vdi, &from)).send().await.unwrap().bytes().await.unwrap();
    raw.wait(&from).await.unwrap();
    let log = raw.sim.pool.log.entries();
    let of = |method: &str| log.iter().find(|e| e.method == method).unwrap();
    assert_eq!((of(PUT).number, of(GET).number), (Some(3), Some(4)), "after two task.create");
    assert_eq!((of(PUT).task.as_str(), &of(PUT).outcome), (into.as_str(), &Some(Ok(json!(vdi)))));
    assert_eq!(of(PUT).params, [json!(vdi), json!({"vdi": vdi, "task_id": into, "format": "raw"})]);
    assert_eq!(raw.sim.pool.log.counts()[PUT], 1);
}

/// xapi.md 6.4 (the verdict is the task's alone): the faults of the wire, as `wire::faults` has them for calls.
#[tokio::test]
async fn faults_strike_an_import() {
    for (effect, answered, status, blocks) in [
        (Effect::Drop, false, "pending", 0),
        (Effect::CutReply, false, "success", 3),
        (Effect::TruncateReply, false, "success", 3),
        (Effect::CutBody(0), true, "failure", 0),
        (Effect::CutBody(70), true, "failure", 2),
        (Effect::ExecuteLate(Duration::from_millis(300)), false, "failure", 2),
        (Effect::Refuse(Failure::new("SR_BACKEND_FAILURE_453", ["", "", ""])), true, "failure", 0),
    ] {
        let (raw, vdi, uuid) = disk().await;
        let number = raw.sim.pool.log.number() + 2;
        raw.sim.pool.faults.add(Fault { target: Target::Number(number), effect: effect.clone(), times: Some(1) });
        let task = fresh(&raw).await;
        let mut stream = dial(&raw).await;
        let head = format!("PUT {} HTTP/1.1\r\nContent-Length: {}\r\n\r\n", import(&raw, &vdi, &task), 6 * MIB);
        stream.write_all(head.as_bytes()).await.unwrap();
        // A connection that breaks while it is written to tells so or not.
        let _ = stream.write_all(&content()).await;
        let mut reply = Vec::new();
        let _ = stream.read_to_end(&mut reply).await;
        let whole = reply.starts_with(b"HTTP/1.1 200 OK\r\n") && reply.ends_with(b"\r\n\r\n");
        assert_eq!(whole, answered, "{effect:?}: {}", String::from_utf8_lossy(&reply));
        if status == "pending" {
            assert_eq!(raw.get("task", &task, "status").await, status);
        } else {
            let _ = raw.wait(&task).await;
            assert_eq!(raw.get("task", &task, "status").await, status, "{effect:?}");
        }
        let expected: Vec<u8> =
            content().into_iter().take(blocks * 2 * MIB).chain(std::iter::repeat(0)).take(6 * MIB).collect();
        assert!(raw.sim.pool.world.disks().read_at(&uuid, 0, 6 * MIB).unwrap() == expected, "{effect:?}");
    }
}

/// xapi.md 6.2: a cut stream looks like a good one; only the task knows.
#[tokio::test]
async fn a_cut_export_looks_like_a_good_one() {
    let (raw, vdi, _) = disk().await;
    for effect in [Effect::CutBody(50), Effect::TruncateReply] {
        strike(&raw, GET, effect);
        let task = fresh(&raw).await;
        let body = raw.http.get(raw.url() + &export(&raw, &vdi, &task)).send().await.unwrap().bytes().await.unwrap();
        assert_eq!(body.len(), 6 * MIB / 100 * 50);
        assert_eq!(raw.wait(&task).await, io_error());
    }
    for effect in [Effect::Drop, Effect::CutReply] {
        strike(&raw, GET, effect);
        let task = fresh(&raw).await;
        assert!(raw.http.get(raw.url() + &export(&raw, &vdi, &task)).send().await.is_err());
    }
}

/// xapi.md 6.2: a death in the middle leaves the control domain's VBD plugged; it blocks destroy until somebody unplugs it.
#[tokio::test]
async fn a_death_in_the_middle_leaves_the_disk_held() {
    let (mut raw, vdi, uuid) = disk().await;
    raw.sim.pool.clock.hold("import_raw_vdi/block");
    let own = fresh(&raw).await;
    let sent = {
        let (http, url) = (raw.http.clone(), raw.url() + &import(&raw, &vdi, &own));
        tokio::spawn(send(http.put(url).body(content())))
    };
    let first = raw.sim.pool.clock.held("import_raw_vdi/block").await;
    assert!(raw.sim.pool.clock.release(first.id));
    raw.sim.pool.clock.held("import_raw_vdi/block").await;
    restart::restart(&raw.sim.pool, true).await;
    drop(sent.await);
    raw.sim.pool.clock.unhold("import_raw_vdi/block");
    raw.session = raw.login("root", "secret").await.unwrap();
    assert_eq!(raw.call("task.get_status", json!([own])).await, failure(["HANDLE_INVALID", "task", &own]));
    assert_eq!(raw.sim.pool.world.disks().read_at(&uuid, 0, 2 * MIB).unwrap(), pattern(5, 0), "one block came");
    assert_eq!(raw.run("VDI.destroy", json!([vdi])).await, failure(["VDI_IN_USE", &vdi, "destroy"]));
    let vbd = raw.get("VDI", &vdi, "VBDs").await[0].clone();
    raw.run("VBD.unplug", json!([vbd])).await.unwrap();
    raw.run("VBD.destroy", json!([vbd])).await.unwrap();
    raw.run("VDI.destroy", json!([vdi])).await.unwrap();
}

/// xapi.md 4.2: a transfer waits while another operation has its disk, and leaves the rest of the repository alone.
#[tokio::test]
async fn an_import_waits_for_its_disk_and_blocks_no_other() {
    let (raw, vdi, _) = disk().await;
    raw.sim.pool.clock.hold("VDI.snapshot/row");
    let snapshot = raw.send_async("VDI.snapshot", json!([vdi])).await;
    raw.sim.pool.clock.held("VDI.snapshot/row").await;
    let own = fresh(&raw).await;
    let sent = {
        let (http, url) = (raw.http.clone(), raw.url() + &import(&raw, &vdi, &own));
        tokio::spawn(send(http.put(url).body(content())))
    };
    raw.sim.pool.log.reached(raw.sim.pool.log.number()).await;
    assert_eq!(held(&raw, &vdi).await, Vec::<Value>::new());
    assert_eq!(raw.get("task", &own, "status").await, "pending");
    raw.sim.pool.clock.hold("import_raw_vdi/block");
    raw.sim.pool.clock.unhold("VDI.snapshot/row");
    raw.wait(&snapshot).await.unwrap();
    raw.sim.pool.clock.held("import_raw_vdi/block").await;
    let other = disk_on(&raw, "Shared storage").await.0;
    raw.run("VDI.snapshot", json!([other])).await.unwrap();
    raw.sim.pool.clock.unhold("import_raw_vdi/block");
    assert_eq!(sent.await.unwrap().unwrap().0, 200);
    assert_eq!(raw.wait(&own).await, Ok(json!(vdi)));
}

/// xapi.md 6.4: a repository in the disk's place: raw only, "Imported VDI".
#[tokio::test]
async fn an_import_into_a_repository_makes_its_disk() {
    let raw = Raw::new().await;
    let sr = raw.named("SR", "Shared storage").await;
    let uuid = raw.get("SR", &sr, "uuid").await;
    for place in [format!("sr_id={sr}"), format!("sr_uuid={}", uuid.as_str().unwrap())] {
        let own = fresh(&raw).await;
        let target = format!("/import_raw_vdi?session_id={}&task_id={own}&{place}", raw.session);
        assert_eq!(put(&raw, &target, content()).await.unwrap().0, 200);
        let vdi = raw.wait(&own).await.unwrap();
        let row = raw.call("VDI.get_record", json!([vdi])).await.unwrap();
        assert_eq!(
            (&row["name_label"], &row["virtual_size"], &row["SR"]),
            (&json!("Imported VDI"), &json!(6 * MIB), &json!(sr))
        );
        let disks = raw.sim.pool.world.disks();
        assert!(disks.read_at(row["uuid"].as_str().unwrap(), 0, 6 * MIB).unwrap() == content());
    }
}

/// xapi.md 1.1: calls and a stream on one connection, which the stream closes.
#[tokio::test]
async fn a_stream_may_follow_calls_on_their_connection() {
    let (raw, vdi, _) = disk().await;
    let mut stream = dial(&raw).await;
    let ask = json!({"jsonrpc": "2.0", "id": 1, "method": "VDI.get_uuid", "params": [raw.session, vdi]}).to_string();
    for _ in 0..2 {
        let call = format!("POST /jsonrpc HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{ask}", ask.len());
        stream.write_all(call.as_bytes()).await.unwrap();
        let head = head_of(&mut stream).await.to_lowercase();
        let length = head.split("content-length: ").nth(1).unwrap().split("\r\n").next().unwrap().parse().unwrap();
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
    }
    let own = fresh(&raw).await;
    for byte in format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", export(&raw, &vdi, &own)).bytes() {
        stream.write_all(&[byte]).await.unwrap();
        stream.flush().await.unwrap();
    }
    assert!(head_of(&mut stream).await.starts_with("HTTP/1.1 200 "));
    let mut body = Vec::new();
    stream.read_to_end(&mut body).await.unwrap();
    assert_eq!(body.len(), 6 * MIB);
    raw.wait(&own).await.unwrap();
}
