// Package deploytest checks what is deployed: images, and the manifests that kustomize renders of deploy/k8s,
// each object decoded strictly by the types of Kubernetes. It needs no cluster.
package deploytest

import (
	"fmt"
	"path/filepath"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// Overlays are the directories of deploy/k8s/overlays.
var Overlays = []string{"dev", "test", "prod"}

// strict refuses fields that the types of Kubernetes do not have, and fields that stand twice.
var strict = serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()

// Render returns the objects of an overlay of the repository at root, as `kubectl apply -k` would send them.
func Render(root, overlay string) ([]runtime.Object, error) {
	return RenderDir(filepath.Join(root, "deploy", "k8s", "overlays", overlay))
}

// RenderDir is Render of any directory with a kustomization.
func RenderDir(dir string) ([]runtime.Object, error) {
	all, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), dir)
	if err != nil {
		return nil, fmt.Errorf("render %s: %w", dir, err)
	}
	var out []runtime.Object
	for _, r := range all.Resources() {
		text, err := r.AsYAML()
		if err != nil {
			return nil, err
		}
		o, err := Decode(text)
		if err != nil {
			return nil, fmt.Errorf("%s of %s: %w", r.CurId(), dir, err)
		}
		out = append(out, o)
	}
	return out, nil
}

// Decode decodes one object, strictly.
func Decode(text []byte) (runtime.Object, error) {
	o, _, err := strict.Decode(text, nil, nil)
	return o, err
}
