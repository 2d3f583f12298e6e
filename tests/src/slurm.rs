//! A real SLURM of two machines on this one: its controller and two of its daemons, each with a name, port and folder of its own.

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use crate::processes::wait_for;
use crate::sae;

/// A cluster, ended with this value.
#[derive(Debug)]
pub struct Slurm {
    folder: tempfile::TempDir,
    daemons: Vec<Child>,
}

/// Without accounts, control groups and munge: what is left needs root, and nothing else of the machine. KillWait: seconds between
/// SIGTERM and SIGKILL.
const CONFIGURATION: &str = "ClusterName=tests
AuthType=auth/none
CredType=cred/none
SlurmUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/linear
SchedulerType=sched/builtin
MpiDefault=none
ReturnToService=2
KillWait=5
SlurmdParameters=config_overrides
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
";

impl Slurm {
    /// Starts one on free ports and waits until both machines can be used.
    ///
    /// # Panics
    /// When it does not come up.
    pub fn start() -> Slurm {
        let folder = tempfile::tempdir().expect("a folder");
        let mut slurm = Slurm { folder, daemons: Vec::new() };
        slurm.configure();
        slurm.daemon("slurmctld", &[]);
        for node in ["n1", "n2"] {
            slurm.daemon("slurmd", &["-N", node]);
        }
        wait_for("a SLURM of two machines", || {
            let idle = slurm.run("sinfo", &["--noheader", "--format=%D %t"]);
            String::from_utf8_lossy(&idle.stdout).contains("2 idle").then_some(())
        });
        slurm
    }

    fn configure(&self) {
        let place = self.folder.path().display();
        let host = Command::new("hostname").output().expect("hostname runs");
        let host = String::from_utf8(host.stdout).expect("a name");
        let host = host.trim();
        // Held together, so that they differ; free again before anybody listens there.
        let sockets = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
        let [controller, one, two] = sockets.map(|socket| socket.local_addr().expect("an address").port());
        let mut text = format!(
            "{CONFIGURATION}SlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={controller}\nStateSaveLocation={place}/state\n\
             SlurmdSpoolDir={place}/spool-%n\nSlurmctldPidFile={place}/slurmctld.pid\nSlurmdPidFile={place}/slurmd-%n.pid\n"
        );
        for (node, port) in [("n1", one), ("n2", two)] {
            text += &format!("NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4\n");
        }
        std::fs::create_dir(self.folder.path().join("state")).expect("a folder");
        std::fs::File::create(self.path()).and_then(|mut file| file.write_all(text.as_bytes())).expect("written");
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("slurm.conf")
    }

    fn daemon(&mut self, name: &str, args: &[&str]) {
        let log =
            std::fs::File::create(self.folder.path().join(format!("{name}{}.log", args.concat()))).expect("a file");
        let mut command = self.command(name);
        command.arg("-D").args(args).stdin(Stdio::null()).stdout(log.try_clone().expect("a handle")).stderr(log);
        self.daemons.push(command.spawn().expect("a daemon starts"));
    }

    /// A command of SLURM's. Daemons lie where users' shells may not look.
    fn command(&self, name: &str) -> Command {
        let sbin = PathBuf::from("/usr/sbin").join(name);
        let mut command = Command::new(if sbin.exists() { sbin } else { name.into() });
        command.env("SLURM_CONF", self.path());
        command
    }

    /// Runs a command of SLURM's to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn run(&self, name: &str, args: &[&str]) -> Output {
        self.command(name).args(args).output().expect("SLURM's commands run")
    }

    /// Types lines into a shell that `srun OPTIONS --pty` starts on a terminal; what stands there in the end.
    ///
    /// # Panics
    /// When there is no script(1).
    pub fn typed(&self, options: &str, lines: &str) -> String {
        let shell = format!("srun {options} --pty bash --norc -i");
        let mut terminal = self.command("script");
        terminal.args(["-q", "-e", "-c", &shell, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut terminal = terminal.spawn().expect("script(1) runs");
        terminal.stdin.take().expect("a keyboard").write_all(lines.as_bytes()).expect("typed");
        let shown = terminal.wait_with_output().expect("the shell ends");
        String::from_utf8_lossy(&shown.stdout).into_owned()
    }

    /// Runs `sae ARGS` where it sees this SLURM; its standard output.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    pub fn sae(&self, args: &[&str]) -> String {
        let conf = self.path();
        sae::run_with(args, &[("SLURM_CONF", conf.to_str().expect("UTF-8"))]).exits(0).stdout
    }

    /// State and exit code of a job, such as `COMPLETED 0:0`.
    pub fn state(&self, job: &str) -> String {
        let shown = self.run("scontrol", &["show", "job", job, "--oneliner"]);
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        let field = |name: &str| shown.split_whitespace().find_map(|field| field.strip_prefix(name)).unwrap_or("?");
        format!("{} {}", field("JobState="), field("ExitCode="))
    }

    /// Waits for a job's end and returns its state. One that was put back into the queue would wait there for two minutes; here it
    /// may start at once.
    pub fn end(&self, job: &str) -> String {
        wait_for("the end of a job", || {
            let state = self.state(job);
            if state.starts_with("PENDING") {
                self.run("scontrol", &["update", &format!("JobId={job}"), "StartTime=now"]);
            }
            let open = ["PENDING", "RUNNING", "COMPLETING", "REQUEUED", "CONFIGURING", "?"];
            (!open.iter().any(|open| state.starts_with(open))).then_some(state)
        })
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        self.run("scancel", &["--user=root", "--signal=KILL"]);
        for daemon in &mut self.daemons {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}
