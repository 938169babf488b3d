// controlplane is etcd, kube-apiserver and kube-controller-manager in one binary: the cluster that Lamina's tests and demo run
// against on a machine without a container engine. build.sh builds it and links it under the three names; nothing else calls it.
//
// It must never grow behaviour of its own. Each program is upstream's entry point, unchanged, so that whatever passes here passes
// against a real cluster; flags, certificates and life cycle belong to whoever starts it.
//
// One binary and not three because the programs share most of their packages: they are then linked once, which is the part of the
// build that needs the most memory, and stored once.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	_ "time/tzdata" // CronJob time zones; the programs' own main packages import it too

	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"          // --logging-format=json, as in the programs' own main packages
	_ "k8s.io/component-base/metrics/prometheus/clientgo" // client and work queue metrics, likewise
	_ "k8s.io/component-base/metrics/prometheus/version"  // kubernetes_build_info, likewise
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
)

var programs = map[string]func(){
	"etcd":                    func() { etcdmain.Main(os.Args) },
	"kube-apiserver":          func() { os.Exit(cli.Run(apiserver.NewAPIServerCommand())) },
	"kube-controller-manager": func() { os.Exit(cli.Run(controllermanager.NewControllerManagerCommand())) },
}

func main() {
	run, known := programs[filepath.Base(os.Args[0])]
	if !known && len(os.Args) > 1 {
		// Shifted, not copied aside: all three parse os.Args themselves and must see their own name first.
		if run, known = programs[os.Args[1]]; known {
			os.Args = os.Args[1:]
		}
	}
	if !known {
		fmt.Fprintln(os.Stderr, "usage: controlplane {etcd|kube-apiserver|kube-controller-manager} [flag ...], or call it by one of these names")
		os.Exit(2)
	}
	run()
}
