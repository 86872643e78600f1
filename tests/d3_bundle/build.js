// Builds d3.min.js, and d3.LICENSE.txt with the licences of all packages that are in it.
// Usage: node build.js FOLDER

import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { build } from "esbuild";

const folder = process.argv[2];
const built = await build({
  entryPoints: ["entry.js"],
  bundle: true,
  minify: true,
  format: "iife",
  globalName: "d3",
  legalComments: "none",
  metafile: true,
  write: false,
});
const packages = [...new Set(Object.keys(built.metafile.inputs).map((path) => path.match(/node_modules\/([^/]+)/)?.[1]))];
const licences = new Map();
const names = [];
for (const name of packages.filter(Boolean).sort()) {
  const place = join("node_modules", name);
  const { version, license } = JSON.parse(readFileSync(join(place, "package.json"), "utf8"));
  const file = readdirSync(place).find((each) => /^licen[cs]e/i.test(each));
  const text = readFileSync(join(place, file), "utf8").trim();
  names.push(`${name} ${version}`);
  licences.set(text, [...(licences.get(text) ?? []), `${name} ${version} (${license})`]);
}
const notices = [...licences].map(([text, users]) => `${users.join(", ")}\n\n${text}`).join("\n\n----\n\n");
// The licences ask to be in every copy, so they are in the bundle as well.
writeFileSync(join(folder, "d3.LICENSE.txt"), `${notices}\n`);
writeFileSync(join(folder, "d3.min.js"), `/* ${names.join(", ")}\n\n${notices}\n*/\n${built.outputFiles[0].text}`);
