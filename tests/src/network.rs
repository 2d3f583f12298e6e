//! Two machines on a network of their own, as far as the kernel's network namespaces make machines, and a cable that can be cut.

use std::process::Command;

use crate::need;

/// The cable between two machines, which end with this value.
#[derive(Debug)]
pub struct Cable {
    machines: [String; 2],
}

impl Cable {
    /// Lays one; needs root and ip(8).
    #[track_caller]
    pub fn lay() -> Option<Cable> {
        if !need::programs(&["ip"], "iproute2") {
            return None;
        }
        let machines = [0, 1].map(|number| format!("sae-{}-{number}", std::process::id()));
        let cable = Cable { machines };
        let [one, other] = &cable.machines;
        let laid = ip(&["netns", "add", one])
            && ip(&["netns", "add", other])
            && ip(&["link", "add", "cable", "netns", one, "type", "veth", "peer", "name", "cable", "netns", other])
            && cable.machines.iter().zip(["10.77.0.1/24", "10.77.0.2/24"]).all(|(machine, address)| {
                ip(&["-n", machine, "link", "set", "lo", "up"])
                    && ip(&["-n", machine, "address", "add", address, "dev", "cable"])
            });
        if laid && cable.set("up") && cable.command(0, "true").status().is_ok_and(|status| status.success()) {
            return Some(cable);
        }
        need::missing("permission to make network namespaces");
        None
    }

    /// A command that runs a program on machine 0 or 1.
    pub fn command(&self, machine: usize, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.machines[machine], program]);
        command
    }

    /// Cuts it: connections stay, and nothing arrives any more.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn cut(&self) {
        assert!(self.set("down"), "the cable is cut");
    }

    /// Joins it again.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn mend(&self) {
        assert!(self.set("up"), "the cable is whole again");
    }

    fn set(&self, state: &str) -> bool {
        self.machines.iter().all(|machine| {
            // A way out, by which a machine finds its own address. It goes with the cable.
            ip(&["-n", machine, "link", "set", "cable", state])
                && (state == "down" || ip(&["-n", machine, "route", "add", "default", "dev", "cable"]))
        })
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for machine in &self.machines {
            ip(&["netns", "delete", machine]);
        }
    }
}

fn ip(words: &[&str]) -> bool {
    Command::new("ip").args(words).output().is_ok_and(|output| output.status.success())
}
