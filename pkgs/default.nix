# The packages of this repository. `pkgs` is a nixpkgs, `gomod2nix` the source tree of gomod2nix.
{ pkgs, gomod2nix }:
let
  inherit (pkgs) lib;
  inherit (pkgs.callPackage "${gomod2nix}/builder" { gomod2nix = null; }) buildGoApplication;

  version = "0.11.0";

  # What the programs run at run time. Nix comes last: an installation's own Nix is preferred, because the
  # evaluator should be the one that people use.
  agentPath = lib.makeBinPath (
    [
      pkgs.gitMinimal
      pkgs.openssh
    ]
    ++ lib.optional pkgs.stdenv.hostPlatform.isLinux pkgs.crun
  );

  program =
    name:
    buildGoApplication {
      pname = name;
      inherit version;
      pwd = ../go;
      src = ../go;
      modules = ../gomod2nix.toml;
      subPackages = [ "cmd/${name}" ];
      # The tests need Nix, git and a store of their own: `make test` runs them, and a check of its own will.
      doCheck = false;
      ldflags = [
        "-s"
        "-w"
        "-X hercules/internal/version.Version=${version}"
      ];
      nativeBuildInputs = [ pkgs.makeWrapper ];
      postFixup = ''
        wrapProgram $out/bin/${name} \
          --prefix PATH : ${agentPath} \
          --suffix PATH : ${lib.makeBinPath [ pkgs.nix ]}
      '';
      meta = {
        mainProgram = name;
        license = lib.licenses.asl20;
      };
    };
in
{
  inherit pkgs;
  hercules-ci-agent = program "hercules-ci-agent";
  hci = program "hci";
  devShell = pkgs.mkShell {
    packages = [
      pkgs.go
      pkgs.gnumake
      pkgs.git
      pkgs.nix
      pkgs.openssh
      pkgs.busybox
    ];
  };
}
