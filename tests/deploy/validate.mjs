// Each object on standard input (a JSON list) against the schema of its kind; prints a JSON list of problems.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const modules = `${process.argv[2]}/node_modules`;
const problems = [];
for (const object of JSON.parse(readFileSync(0, "utf8"))) {
  const operators = object.apiVersion.startsWith("monitoring.coreos.com/");
  const kinds = `${modules}/${operators ? "@kubernetes-models/prometheus-operator" : "kubernetes-models"}`;
  const known = await import(pathToFileURL(`${kinds}/${object.apiVersion}/${object.kind}.js`).href);
  try {
    new known[object.kind](object).validate();
  } catch (error) {
    problems.push(`${object.kind} ${object.metadata.name}: ${error.message}`);
  }
}
console.log(JSON.stringify(problems));
