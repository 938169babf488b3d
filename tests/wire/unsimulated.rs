//! Calls that nobody simulates are a list that everybody can read, and no more than that.

use lamina::sim::schema::{Message, Type, schema};
use lamina::xapi::wire::Ref;
use serde_json::{Value, json};

use super::Raw;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/simulator.md");
const MARKS: (&str, &str) = ("<!-- calls -->\n", "<!-- /calls -->");

/// A value that passes the check of types, and names nothing that is there.
fn nothing(kind: &Type) -> Value {
    match kind {
        Type::Ref(_) => json!(Ref::NULL),
        Type::Int => json!(0),
        Type::Float => json!(0.0),
        Type::Bool => json!(false),
        Type::Set(_) => json!([]),
        Type::Map(..) | Type::Record(_) | Type::Other => json!({}),
        Type::String | Type::DateTime | Type::Void | Type::Enum(_) => json!(""),
    }
}

async fn missing(raw: &Raw, class: &str, message: &Message) -> bool {
    let method = format!("{class}.{}", message.name);
    let session = raw.login("root", "secret").await.unwrap();
    let given = message.params.iter().map(|p| nothing(&p.kind));
    let given =
        if message.sessionless { given.collect() } else { std::iter::once(json!(session)).chain(given).collect() };
    matches!(raw.bare(&method, given).await, Err(why) if why[0] == "NOT_IMPLEMENTED")
}

/// xapi.md 4.5, 9.3: `NOT_IMPLEMENTED [function]`. To write the list anew: `UPDATE=1 cargo test --test lamina wire::unsimulated`.
#[tokio::test]
async fn the_document_names_every_call_that_is_not_simulated() {
    let raw = Raw::new().await;
    let mut list = String::new();
    for class in schema().classes.values() {
        let mut names = Vec::new();
        for message in class.messages.values().filter(|m| !m.removed) {
            if missing(&raw, &class.name, message).await {
                names.push(message.name.as_str());
            }
        }
        if !names.is_empty() {
            list += &format!("- **{}** ({}): {}\n", class.name, names.len(), names.join(", "));
        }
    }
    let document = std::fs::read_to_string(DOCUMENT).unwrap();
    let (before, rest) = document.split_once(MARKS.0).unwrap();
    let (listed, after) = rest.split_once(MARKS.1).unwrap();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(DOCUMENT, format!("{before}{}{list}{}{after}", MARKS.0, MARKS.1)).unwrap();
        return;
    }
    assert_eq!(listed, list);
}

/// xapi.md 4, 5 and 11: what makes, starts and destroys machines and disks, and what others do to them, is there.
#[tokio::test]
async fn a_packaging_life_and_its_meddlers_are_simulated() {
    let raw = Raw::new().await;
    for method in "VDI.create VDI.clone VDI.snapshot VDI.copy VDI.destroy VDI.resize VDI.introduce VDI.forget VDI.update \
        VDI.set_name_label VDI.set_name_description VDI.add_tags VDI.set_on_boot VDI.enable_cbt VDI.disable_cbt VDI.data_destroy \
        VDI.get_nbd_info SR.scan SR.forget SR.introduce SR.update PBD.create PBD.destroy PBD.plug PBD.unplug VM.clone VM.copy \
        VM.create VM.provision VM.start VM.start_on VM.clean_shutdown VM.shutdown VM.hard_shutdown VM.clean_reboot VM.hard_reboot \
        VM.pause VM.unpause VM.suspend VM.resume VM.resume_on VM.destroy VM.snapshot VM.checkpoint VM.revert VM.pool_migrate \
        VM.power_state_reset VM.call_plugin VM.set_is_a_template VM.assert_can_boot_here VM.get_possible_hosts \
        VM.get_allowed_VBD_devices VM.get_allowed_VIF_devices VM.set_VCPUs_max VM.set_memory_limits VM.set_memory \
        VM.set_has_vendor_device VM.set_xenstore_data VM.add_to_blocked_operations VM.set_actions_after_crash \
        VM.set_ha_restart_priority VBD.create VBD.destroy VBD.insert VBD.eject VBD.plug VBD.unplug VBD.unplug_force VBD.set_mode \
        VIF.create VIF.destroy VIF.plug VIF.unplug VIF.move event.from event.inject task.create task.cancel task.destroy \
        pool.sync_database pool.enable_ha pool.designate_new_master host.disable host.enable host.get_server_certificate \
        host.get_servertime message.create message.get session.logout"
        .split_whitespace()
    {
        let (class, name) = method.split_once('.').unwrap();
        let message = &schema().class(class).unwrap().messages[name];
        assert!(!missing(&raw, class, message).await, "{method}");
    }
}
