//! Transport: xapi.md 1.1, 1.2, 1.5 and 14 (HTTP).

use super::Raw;
use lamina::xapi::wire::Failure;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};

async fn post(raw: &Raw, path: &str, body: &str) -> (u16, String, String) {
    let reply = raw.http.post(raw.url() + path).body(body.to_owned()).send().await.unwrap();
    let content = reply.headers()[CONTENT_TYPE].to_str().unwrap().to_owned();
    (reply.status().as_u16(), content, reply.text().await.unwrap())
}

/// xapi.md 1.2: version 1 is chosen by the absence of the key, and has both `result` and `error`.
#[tokio::test]
async fn json_1_0_has_its_own_shape() {
    let raw = Raw::new().await;
    let ask =
        |method: &str, object: &str| json!({"id": "a", "method": method, "params": [raw.session, object]}).to_string();
    let pool = raw.first("pool").await;
    let (status, content, body) = post(&raw, "/jsonrpc", &ask("pool.get_name_label", &pool)).await;
    assert_eq!((status, content.as_str()), (200, "application/json"));
    let body: Value = serde_json::from_str(&body).unwrap();
    assert!(
        body["result"].is_string() && body["error"].is_null() && body["id"] == "a" && body.get("jsonrpc").is_none()
    );
    let (status, _, body) = post(&raw, "/jsonrpc", &ask("VM.get_record", "OpaqueRef:x")).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (status, body),
        (200, json!({"result": null, "error": ["HANDLE_INVALID", "VM", "OpaqueRef:x"], "id": "a"}))
    );
}

/// xapi.md 1.2: no id, a null id, another version, a batch, broken JSON: HTTP 500 with an HTML page.
#[tokio::test]
async fn malformed_requests_get_a_page() {
    let raw = Raw::new().await;
    for body in [
        r#"{"jsonrpc":"2.0","method":"pool.get_all","params":[]}"#,
        r#"{"jsonrpc":"2.0","id":null,"method":"pool.get_all","params":[]}"#,
        r#"{"jsonrpc":"3.0","id":1,"method":"pool.get_all","params":[]}"#,
        r#"[{"jsonrpc":"2.0","id":1,"method":"pool.get_all","params":[]}]"#,
        r#"{"id":1,"method":"pool.get_all"}"#,
        "{",
        "",
    ] {
        let (status, content, text) = post(&raw, "/jsonrpc", body).await;
        assert_eq!((status, content.as_str()), (500, "text/html"), "{body}");
        assert!(text.contains("<h1>"));
    }
    assert_eq!(post(&raw, "/", "<methodCall>").await.0, 500);
    assert_eq!(post(&raw, "/RPC2", "{}").await.0, 500);
}

/// xapi.md 1.1: 1024 bytes of request line and headers, 300 KiB of body, no chunks.
#[tokio::test]
async fn transport_limits_hold() {
    let raw = Raw::new().await;
    let url = raw.url() + "/jsonrpc";
    let ask = json!({"jsonrpc": "2.0", "id": 1, "method": "system.listMethods"}).to_string();
    let with = |bytes: usize| raw.http.post(&url).header("x-fill", "x".repeat(bytes)).body(ask.clone()).send();
    assert_eq!(with(700).await.unwrap().status(), 200);
    assert_eq!(with(1024).await.unwrap().status(), 431);
    let padded = |bytes: usize| format!("{ask}{}", " ".repeat(bytes - ask.len()));
    assert_eq!(post(&raw, "/jsonrpc", &padded(300 * 1024)).await.0, 200);
    assert_eq!(post(&raw, "/jsonrpc", &padded(300 * 1024 + 1)).await.0, 500);
    let stream =
        reqwest::Body::wrap(http_body_util::StreamBody::new(futures::stream::iter([Ok::<_, std::io::Error>(
            hyper::body::Frame::data(hyper::body::Bytes::from(ask.clone())),
        )])));
    assert_eq!(raw.http.post(&url).body(stream).send().await.unwrap().status(), 500);
}

/// xapi.md 1.2, quirk: before dispatch the error is a bare array and the id is 0.
#[tokio::test]
async fn a_booting_host_answers_with_an_array_and_id_0() {
    let raw = Raw::new().await;
    raw.sim.pool.faults.set_booting(Some(Failure::new::<&str>("HOST_STILL_BOOTING", [])));
    let ask = json!({"jsonrpc": "2.0", "id": 9, "method": "pool.get_all", "params": [raw.session]}).to_string();
    let (status, _, body) = post(&raw, "/jsonrpc", &ask).await;
    let body: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, body), (200, json!({"jsonrpc": "2.0", "error": ["HOST_STILL_BOOTING"], "id": 0})));
    raw.sim.pool.faults.set_booting(None);
    raw.first("pool").await;
    let reply = raw.http.post(raw.url() + "/jsonrpc").body(vec![b'{', 0xff]).send().await.unwrap();
    assert_eq!(reply.json::<Value>().await.unwrap()["error"][0], "INVALID_VALUE");
}

/// xapi.md 14, HTTP: no white space between tags, integers as strings, `text/xml` without a charset. 1.2: the struct of a reply.
#[tokio::test]
async fn xml_rpc_is_spoken_on_every_path_but_one() {
    let raw = Raw::new().await;
    let vm = raw.row("VM", "a & b");
    let ask = |field: &str, object: &str| {
        format!(
            "<?xml version='1.0'?><methodCall><methodName>VM.get_{field}</methodName><params><param><value><string>{}</string>\
            </value></param><param><value>{object}</value></param></params></methodCall>",
            raw.session
        )
    };
    for path in ["/", "/RPC2", "/xmlrpc"] {
        let (status, content, text) = post(&raw, path, &ask("memory_target", &vm)).await;
        assert_eq!((status, content.as_str()), (200, "text/xml"));
        let body = "<?xml version=\"1.0\"?><methodResponse><params><param><value><struct><member><name>Status</name><value>Success</value>\
            </member><member><name>Value</name><value>0</value></member></struct></value></param></params></methodResponse>";
        assert_eq!(text, body);
    }
    assert!(post(&raw, "/", &ask("name_label", &vm)).await.2.contains("<value>a &amp; b</value>"));
    assert!(
        post(&raw, "/", &ask("snapshot_time", &vm)).await.2.contains("<dateTime.iso8601>19700101T00:00:00Z</dateTime")
    );
    let text = post(&raw, "/", &ask("name_label", "OpaqueRef:x")).await.2;
    assert!(
        text.contains(
            "<name>ErrorDescription</name><value><array><data><value>HANDLE_INVALID</value><value>VM</value>"
        ),
        "{text}"
    );
    // xapi.md 14, Sessions: map keys are not escaped.
    raw.call("VM.add_to_other_config", json!([vm, "a<b", "x<y"])).await.unwrap();
    let text = post(&raw, "/", &ask("other_config", &vm)).await.2;
    assert!(text.contains("<name>a<b</name><value>x&lt;y</value>"), "{text}");
}

/// xapi.md 1.5: TLS 1.2, a certificate per host, its fingerprint readable in the pool; the certificate fits `host.get_server_certificate`.
#[tokio::test]
async fn every_host_shows_its_own_certificate() {
    let raw = Raw::new().await;
    let records = raw.call("Certificate.get_all_records", json!([])).await.unwrap();
    let known: Vec<&Value> = records.as_object().unwrap().values().map(|c| &c["fingerprint"]).collect();
    assert_eq!(raw.sim.hosts.len(), 3);
    for host in &raw.sim.hosts {
        assert!(known.contains(&&json!(host.fingerprint)));
    }
    let master = raw.first("pool").await;
    let master = raw.call("pool.get_master", json!([master])).await.unwrap();
    let pem = raw.call("host.get_server_certificate", json!([master])).await.unwrap();
    assert_eq!(pem, json!(raw.sim.hosts[0].certificate_pem));
}

/// xapi.md 2.1: every other host names the coordinator's address, to a log-in and to any call.
#[tokio::test]
async fn members_name_the_coordinator() {
    let raw = Raw::new().await;
    let http = crate::common::hands::http(&raw.sim);
    for url in &raw.sim.urls()[1..] {
        for (method, params) in [
            ("session.login_with_password", json!(["root", "secret", "1.0", "t"])),
            ("VM.get_all", json!([raw.session])),
        ] {
            let ask = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
            let reply: Value =
                http.post(format!("{url}/jsonrpc")).json(&ask).send().await.unwrap().json().await.unwrap();
            assert_eq!(reply["error"], json!({"code": 1, "message": "HOST_IS_SLAVE", "data": ["127.0.0.1"]}));
        }
    }
}

/// xapi.md 1.3: odd floats are bare tokens, which no JSON parser takes.
#[tokio::test]
async fn odd_floats_are_bare_tokens() {
    let raw = Raw::new().await;
    let vm = raw.row("VM", "x");
    let odd = format!("{}NaN", lamina::sim::schema::ODD_FLOAT);
    raw.sim.pool.db().set("VM", &lamina::xapi::wire::Ref(vm.clone()), "HVM_shadow_multiplier", json!(odd)).unwrap();
    let ask = json!({"id": 1, "method": "VM.get_record", "params": [raw.session, vm]}).to_string();
    let text = post(&raw, "/jsonrpc", &ask).await.2;
    assert!(text.contains("\"HVM_shadow_multiplier\":NaN,"), "{text}");
}

/// xapi.md 1.3: values of enumerations that nobody has heard of pass as they are, in records and events.
#[tokio::test]
async fn odd_values_of_enumerations_are_served_as_they_are() {
    let raw = Raw::new().await;
    let vm = raw.row("VM", "x");
    let reference = lamina::xapi::wire::Ref(vm.clone());
    raw.sim.pool.db().set("VM", &reference, "power_state", json!("Dreaming")).unwrap();
    raw.sim.pool.db().set("VM", &reference, "allowed_operations", json!(["levitate"])).unwrap();
    assert_eq!(raw.call("VM.get_power_state", json!([vm])).await, Ok(json!("Dreaming")));
    let batch = raw.call("event.from", json!([[format!("vm/{vm}")], "", 5.0])).await.unwrap();
    let snapshot = &batch["events"][0]["snapshot"];
    assert_eq!((&snapshot["power_state"], &snapshot["allowed_operations"]), (&json!("Dreaming"), &json!(["levitate"])));
}

/// xapi.md 2.1: a log-in meets the booting host, too.
#[tokio::test]
async fn a_booting_host_lets_nobody_in() {
    let raw = Raw::new().await;
    raw.sim.pool.faults.set_booting(Some(Failure::new::<&str>("HOST_STILL_BOOTING", [])));
    let ask = json!({"jsonrpc": "2.0", "id": 1, "method": "session.login_with_password", "params": ["root", "secret", "1.0", "t"]});
    let (_, _, body) = post(&raw, "/jsonrpc", &ask.to_string()).await;
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["error"], json!(["HOST_STILL_BOOTING"]));
}
