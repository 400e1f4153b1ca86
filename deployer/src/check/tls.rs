//! Whether the files that workers' certificates are checked by can be used.

use super::Finding;
use crate::{config::Config, warm::authorities};

pub(super) fn findings(config: &Config) -> Vec<Finding> {
    let named = config.services.values().filter_map(|service| Some((service, service.tls.as_ref()?.ca.as_ref()?)));
    let looked_at = named.map(|(service, ca)| {
        let what = format!("service.{}.tls.ca", service.name);
        match authorities(ca) {
            Ok(all) => Finding::ok(what, format!("{} holds certificates ({})", ca.display(), all.len())),
            Err(why) => Finding::fail(what, format!("{why}; no worker can be warmed")),
        }
    });
    looked_at.collect()
}
