// Compiles the .mo files beside this script: node compile.js NODE_MODULES OUT
const fs = require('fs');
const path = require('path');
const [modules, out] = process.argv.slice(2);
const loaded = require(path.join(modules, 'motoko'));
const mo = loaded.default ?? loaded;
for (const file of fs.readdirSync(__dirname).filter((name) => name.endsWith('.mo'))) {
  mo.write(file, fs.readFileSync(path.join(__dirname, file), 'utf8'));
  fs.writeFileSync(path.join(out, file.replace('.mo', '.wasm')), mo.wasm(file, 'ic').wasm);
}
