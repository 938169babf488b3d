//! How a guest's xenstore reads in `VM_guest_metrics` (xapi.md 7.2), and what a guest with tools writes there. Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

type Store = BTreeMap<String, String>;

/// The fields of the guest metrics that a store maps to.
pub fn mapped(store: &Store) -> Vec<(&'static str, Value)> {
    let named = |pairs: &[(&str, &str)]| -> Value {
        pairs.iter().filter_map(|(key, field)| Some(((*field).to_owned(), json!(store.get(*key)?)))).collect()
    };
    let detected = store.iter().any(|(k, v)| is_front_end(k) && v == "4");
    let mut versions = named(&[
        ("attr/PVAddons/MajorVersion", "major"),
        ("attr/PVAddons/MinorVersion", "minor"),
        ("attr/PVAddons/MicroVersion", "micro"),
        ("attr/PVAddons/BuildVersion", "build"),
    ]);
    let drivers = store.iter().filter(|(k, _)| k.starts_with("drivers/")).filter_map(|(_, v)| {
        let (vendor, rest) = v.split_once(' ')?;
        let (name, version) = rest.split_once(' ')?;
        Some((name.to_lowercase(), json!(format!("{vendor} {version}"))))
    });
    if let Some(map) = versions.as_object_mut() {
        if map.contains_key("major") {
            map.entry("micro").or_insert(json!("-1"));
        }
        map.extend(drivers);
    }
    let mut other: serde_json::Map<String, Value> = store
        .iter()
        .filter_map(|(k, v)| Some((k.strip_prefix("control/")?, v)))
        .filter(|(k, _)| !k.contains('/'))
        .map(|(k, v)| (k.to_owned(), json!(v)))
        .collect();
    let data = [("data/ts", "data-ts"), ("data/cant_suspend_reason", "data-cant-suspend-reason")];
    other.extend(data.iter().filter_map(|(k, f)| Some(((*f).to_owned(), json!(store.get(*k)?)))));
    let hotplug = |kind: &str| match store.get(&format!("feature/hotplug/{kind}")).map(String::as_str) {
        Some("1") => json!("yes"),
        Some("0") => json!("no"),
        Some(_) | None => json!("unspecified"),
    };
    vec![
        ("PV_drivers_version", versions),
        ("PV_drivers_detected", json!(detected)),
        ("PV_drivers_up_to_date", json!(detected)),
        (
            "os_version",
            named(&[
                ("data/os_name", "name"),
                ("data/os_uname", "uname"),
                ("data/os_distro", "distro"),
                ("data/os_majorver", "major"),
                ("data/os_minorver", "minor"),
                ("attr/os/spmajor", "spmajor"),
                ("attr/os/spminor", "spminor"),
            ]),
        ),
        ("networks", store.iter().flat_map(|(k, v)| addresses(k, v)).collect()),
        ("other", Value::Object(other)),
        ("can_use_hotplug_vbd", hotplug("vbd")),
        ("can_use_hotplug_vif", hotplug("vif")),
    ]
}

/// A connected front end of a disk or network card is what counts as drivers (xapi.md 7.3).
fn is_front_end(key: &str) -> bool {
    key.ends_with("/state") && ["device/vbd/", "device/vif/"].iter().any(|p| key.starts_with(p))
}

fn addresses(key: &str, value: &str) -> Vec<(String, Value)> {
    let parts: Vec<&str> = key.split('/').collect();
    match parts.as_slice() {
        ["attr", "vif", n, "ipv4", "0"] => {
            vec![(format!("{n}/ip"), json!(value)), (format!("{n}/ipv4/0"), json!(value))]
        }
        ["attr", "vif", n, kind @ ("ipv4" | "ipv6"), i] => vec![(format!("{n}/{kind}/{i}"), json!(value))],
        _ => Vec::new(),
    }
}

/// The drivers' part: front ends connect as soon as the system is up.
pub fn drivers() -> Store {
    let keys = [
        ("device/vbd/0/state", "4"),
        ("device/vif/0/state", "4"),
        ("drivers/0", "XenServer XENBUS 9.1.11.115 "),
        ("drivers/1", "XenServer XENVBD 9.1.8.79 "),
        ("feature/hotplug/vbd", "1"),
        ("feature/hotplug/vif", "1"),
    ];
    keys.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

/// The management agent's part (xapi.md 7.2, "Typical").
pub fn agent(address: &str) -> Store {
    let keys = [
        ("attr/PVAddons/MajorVersion", "9"),
        ("attr/PVAddons/MinorVersion", "4"),
        ("attr/PVAddons/MicroVersion", "0"),
        ("attr/PVAddons/BuildVersion", "146"),
        ("control/feature-shutdown", "1"),
        ("control/feature-reboot", "1"),
        ("control/feature-suspend", "1"),
        ("control/feature-static-ip-setting", "1"),
        ("control/feature-balloon", "1"),
        ("data/os_name", "Microsoft Windows 11 Enterprise|C:\\Windows|\\Device\\Harddisk0\\Partition3"),
        ("data/os_distro", "windows"),
        ("data/os_majorver", "10"),
        ("data/os_minorver", "0"),
        ("attr/vif/0/ipv4/0", address),
    ];
    keys.map(|(k, v)| (k.to_owned(), v.to_owned())).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_alone_are_detected_and_the_agent_adds_the_rest() {
        let field = |store: &Store, name: &str| mapped(store).into_iter().find(|(n, _)| *n == name).unwrap().1;
        let mut store = drivers();
        assert_eq!(field(&store, "PV_drivers_detected"), json!(true));
        assert_eq!(field(&store, "other"), json!({}));
        assert_eq!(field(&store, "PV_drivers_version")["xenvbd"], json!("XenServer 9.1.8.79 "));
        store.extend(agent("192.0.2.7"));
        assert_eq!(field(&store, "other")["feature-static-ip-setting"], json!("1"));
        assert_eq!(field(&store, "PV_drivers_version")["major"], json!("9"));
        assert_eq!(field(&store, "networks"), json!({"0/ip": "192.0.2.7", "0/ipv4/0": "192.0.2.7"}));
        assert_eq!(field(&Store::new(), "PV_drivers_detected"), json!(false));
    }
}
