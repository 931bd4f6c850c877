# Every setting of hercules-ci-agent, as data: no functions, no imports, no nixpkgs. This file is the one source.
# From it are made, by `make generate`, the Go type with its defaults and validation (go/internal/config), the
# reference page (docs/agent-config.md) and the JSON schema (docs/agent.schema.json); NixOS and nix-darwin options
# can be made from it too. A setting is added here and nowhere else.
#
# A setting has
#   name, type, description
#   since     the first agent version that has it, where it was not always there
#   example   optional
#   required  true where there is no default
#   default   otherwise, one of
#               { value = …; }                           this value
#               { below = "setting"; path = "…"; }       this path below the value of another setting
#               { environment = [ "VAR" … ]; value = …; } the first of these variables that is set, else the value
#               { derived = "…"; }                       absent; the words say what the agent does then
#   access    of paths: "read" or "write", what the agent does there (for hardening of services)
#   secret    true where the file holds secrets, so that it must not be in the Nix store
#   watch     true where the agent has to be restarted when the file changes
#
# A type is a set with `kind`:
#   string, path, bool, json          json is any value, also null
#   int     min, max, unit            both ends optional, unit "seconds" or "MiB"
#   enum    values
#   list    of
#   map     of                        any names
#   record  fields                    each with name, type, description; all of them are required
#   tagged  tags                      a set with exactly one of these fields, each with name, type, description
#   either  alternatives              the first that fits
#   ref     name                      one of `types` below
{
  program = "hercules-ci-agent";

  types = {
    condition = {
      kind = "either";
      alternatives = [
        { kind = "bool"; }
        {
          kind = "enum";
          values = [
            "isDefaultBranch"
            "isTag"
          ];
        }
        {
          kind = "tagged";
          tags = [
            {
              name = "isBranch";
              type.kind = "string";
              description = "The job runs for the branch of this name.";
            }
            {
              name = "isRepo";
              type.kind = "string";
              description = "The repository has this name.";
            }
            {
              name = "isOwner";
              type.kind = "string";
              description = "The repository belongs to this account.";
            }
            {
              name = "and";
              type = {
                kind = "list";
                of = {
                  kind = "ref";
                  name = "condition";
                };
              };
              description = "All of these hold. An empty list holds.";
            }
            {
              name = "or";
              type = {
                kind = "list";
                of = {
                  kind = "ref";
                  name = "condition";
                };
              };
              description = "One of these holds. An empty list does not.";
            }
          ];
        }
      ];
      description = ''
        Who may use something, decided from the repository and the ref of a job. Names are compared exactly.
        `true` and `false` are constant; `"isDefaultBranch"` holds for the default branch and `"isTag"` for tags.
        There is no negation.
      '';
    };

    mountable = {
      kind = "record";
      fields = [
        {
          name = "source";
          type.kind = "path";
          description = "The file, directory or device on the agent's machine.";
        }
        {
          name = "readOnly";
          type.kind = "bool";
          description = "Whether effects can only read it.";
        }
        {
          name = "condition";
          type = {
            kind = "ref";
            name = "condition";
          };
          description = "Which jobs may mount it.";
        }
      ];
      description = "Something of the agent's machine that effects may ask for.";
    };
  };

  sections = [
    {
      title = "The service";
      description = "Where the agent gets its work.";
      settings = [
        {
          name = "apiBaseUrl";
          type.kind = "string";
          default = {
            environment = [
              "HERCULES_CI_API_BASE_URL"
              "HERCULES_API_BASE_URL"
            ];
            value = "https://hercules-ci.com";
          };
          description = "The base URL of the service that hands out tasks.";
          example = "https://ci.example.org";
        }
        {
          name = "labels";
          type = {
            kind = "map";
            of.kind = "json";
          };
          default.value = { };
          description = ''
            Facts about this agent that are shown by the service. Any structure; `null` is kept (JSON only, TOML has none).
          '';
          example = {
            site = "basement";
            agent.source = "flake";
          };
          since = "0.8.1";
        }
        {
          name = "concurrentTasks";
          type = {
            kind = "either";
            alternatives = [
              {
                kind = "int";
                min = 1;
              }
              {
                kind = "enum";
                values = [ "auto" ];
              }
            ];
          };
          default.value = "auto";
          description = ''
            How many tasks run at the same time. The service is told, and the agent holds back what goes beyond it.
            `"auto"` is the number of CPUs, and at least 2.
          '';
          example = 4;
        }
        {
          name = "drainTimeoutSeconds";
          type = {
            kind = "int";
            min = 0;
            max = 86400;
            unit = "seconds";
          };
          default.value = 60;
          description = ''
            How long running tasks may go on after the agent was asked to stop (SIGTERM). It takes no new tasks in that
            time; what is not done at its end is handed back to the service. A second signal ends the wait. The stop
            time limit of the service manager has to be longer.
          '';
          example = 600;
          since = "0.11";
        }
      ];
    }
    {
      title = "Files and directories";
      description = "Where the agent keeps its state and finds its secrets.";
      settings = [
        {
          name = "baseDirectory";
          type.kind = "path";
          required = true;
          access = "write";
          description = "The root of the agent's state. The session key is kept in `secretState` below it.";
          example = "/var/lib/hercules-ci-agent";
        }
        {
          name = "workDirectory";
          type.kind = "path";
          default = {
            below = "baseDirectory";
            path = "work";
          };
          access = "write";
          description = ''
            Temporary files of tasks: sources, netrc files, sandboxes. Made at start; what a killed agent left there is
            removed at start.
          '';
        }
        {
          name = "staticSecretsDirectory";
          type.kind = "path";
          default = {
            below = "baseDirectory";
            path = "secrets";
          };
          access = "read";
          secret = true;
          description = "Where the files of the next three settings are, unless they say otherwise. The agent writes nothing here.";
          example = "/run/secrets/hercules-ci";
        }
        {
          name = "clusterJoinTokenPath";
          type.kind = "path";
          default = {
            below = "staticSecretsDirectory";
            path = "cluster-join-token.key";
          };
          access = "read";
          secret = true;
          watch = true;
          description = "The file with the token that lets this agent join its cluster.";
        }
        {
          name = "binaryCachesPath";
          type.kind = "path";
          default = {
            below = "staticSecretsDirectory";
            path = "binary-caches.json";
          };
          access = "read";
          secret = true;
          description = "The file that names the binary caches to pull from and push to, with their keys (docs/binary-caches.md). It has to exist; `{}` is enough for a single agent. It is read again when it changes; tasks that run keep what they started with.";
        }
        {
          name = "secretsJsonPath";
          type.kind = "path";
          default = {
            below = "staticSecretsDirectory";
            path = "secrets.json";
          };
          access = "read";
          secret = true;
          description = "The file with the secrets of effects. It is read anew for each effect that asks for one.";
          since = "0.8.4";
        }
      ];
    }
    {
      title = "Evaluation";
      description = "How Nix expressions are evaluated.";
      settings = [
        {
          name = "evaluationWorkers";
          type = {
            kind = "int";
            min = 1;
            max = 1024;
          };
          default.derived = "the number of CPUs";
          description = "How many Nix evaluators of one task work at the same time.";
          example = 4;
          since = "0.11";
        }
        {
          name = "evaluationMemoryMiB";
          type = {
            kind = "int";
            min = 128;
            max = 16777216;
            unit = "MiB";
          };
          default.derived = "three quarters of the machine's memory, divided by the number of evaluators, but at least 2048 where the machine has that much";
          description = ''
            How much memory one evaluator may use. Above it, the evaluator is replaced before the next attribute; an
            attribute that needs more alone gets an error that says so.
          '';
          example = 4096;
          since = "0.11";
        }
        {
          name = "attributeTimeoutSeconds";
          type = {
            kind = "int";
            min = 1;
            max = 604800;
            unit = "seconds";
          };
          default.derived = "no limit";
          description = "How long the evaluation of one attribute may take, without the time that it waits for builds. An attribute that takes longer gets an error.";
          example = 600;
          since = "0.11";
        }
        {
          name = "evaluationTimeoutSeconds";
          type = {
            kind = "int";
            min = 1;
            max = 604800;
            unit = "seconds";
          };
          default.derived = "no limit";
          description = "How long the evaluation of a whole job may take, with the time that it waits for builds.";
          example = 7200;
          since = "0.11";
        }
        {
          name = "allowInsecureBuiltinFetchers";
          type.kind = "bool";
          default.value = false;
          description = "Whether expressions may fetch from `http://` and `git://`, which anyone on the way can change.";
        }
      ];
    }
    {
      title = "Nix";
      description = "How the agent uses the Nix of its machine.";
      settings = [
        {
          name = "nixSettings";
          type = {
            kind = "map";
            of.kind = "string";
          };
          default.value = { };
          description = ''
            Nix settings that go before those of `nix.conf`, for everything that the agent does. All values are text. They
            have no order, so set either `x` or `extra-x`.
          '';
          example = {
            max-jobs = "4";
            extra-platforms = "i686-linux";
          };
          since = "0.10.2";
        }
        {
          name = "nixUserIsTrusted";
          type.kind = "bool";
          default.value = false;
          description = ''
            Says that the agent's user is one of the `trusted-users` of Nix. Then builds need less of their closure to be
            at hand, and the binary caches are used for substitution.
          '';
        }
        {
          name = "remotePlatformsWithSameFeatures";
          type = {
            kind = "list";
            of.kind = "string";
          };
          default.derived = "none";
          description = ''
            Platforms to offer besides those of this machine, because its Nix has remote builders for them with the same
            system features.
          '';
          example = [ "aarch64-linux" ];
          since = "0.10.1";
        }
      ];
    }
    {
      title = "Effects";
      description = "What effects may use.";
      settings = [
        {
          name = "effectMountables";
          type = {
            kind = "map";
            of = {
              kind = "ref";
              name = "mountable";
            };
          };
          default.value = { };
          description = "Files, directories and devices of this machine that effects may mount, by the name that they ask for.";
          example = {
            hosts = {
              source = "/etc/hosts";
              readOnly = true;
              condition = {
                and = [
                  { isOwner = "acme"; }
                  "isDefaultBranch"
                ];
              };
            };
          };
          since = "0.10.1";
        }
      ];
    }
    {
      title = "Logs";
      description = "How much the agent says on standard error.";
      settings = [
        {
          name = "logLevel";
          type = {
            kind = "enum";
            values = [
              "DebugS"
              "InfoS"
              "NoticeS"
              "WarningS"
              "ErrorS"
              "CriticalS"
              "AlertS"
              "EmergencyS"
            ];
          };
          default.value = "InfoS";
          description = "The least severe messages that the agent logs. Under systemd they have the priority of the journal.";
          example = "DebugS";
          since = "0.7.3";
        }
        {
          name = "nixVerbosity";
          type = {
            kind = "enum";
            values = [
              "Error"
              "Warn"
              "Notice"
              "Info"
              "Talkative"
              "Chatty"
              "Debug"
              "Vomit"
            ];
          };
          default.value = "Talkative";
          description = "How much Nix says in the logs of tasks. It is never less than `Info`.";
          example = "Vomit";
          since = "0.9.11";
        }
      ];
    }
  ];
}
