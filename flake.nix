{
  description = "Continuous integration for Nix: agent, command line and coordinator in Go";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";
    # Only its builder is used, so its own inputs are not locked.
    gomod2nix = {
      url = "github:nix-community/gomod2nix";
      flake = false;
    };
  };

  outputs =
    {
      self,
      nixpkgs,
      gomod2nix,
    }:
    let
      systems = [
        "x86_64-linux"
        "aarch64-linux"
        "x86_64-darwin"
        "aarch64-darwin"
      ];
      forAllSystems =
        f:
        nixpkgs.lib.genAttrs systems (
          system:
          f (import ./pkgs {
            pkgs = nixpkgs.legacyPackages.${system};
            inherit gomod2nix;
          })
        );
      app = package: program: {
        type = "app";
        program = "${package}/bin/${program}";
      };
    in
    {
      packages = forAllSystems (p: {
        inherit (p) hercules-ci-agent hci;
        default = p.hci;
      });
      apps = forAllSystems (p: {
        hci = app p.hci "hci";
        hercules-ci-agent = app p.hercules-ci-agent "hercules-ci-agent";
        default = app p.hci "hci";
      });
      checks = forAllSystems (p: {
        inherit (p) hercules-ci-agent hci;
      });
      devShells = forAllSystems (p: {
        default = p.devShell;
      });
      formatter = forAllSystems (p: p.pkgs.nixfmt);
    };
}
