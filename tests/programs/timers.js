// Timers, workers, a child, a server with a client that keeps its connection, and memory that must stay the same.
'use strict';
const { Worker, isMainThread, parentPort } = require('worker_threads');
const { createHash, randomBytes } = require('crypto');
const http = require('http');
const { spawn } = require('child_process');
const fs = require('fs');

const digest = (bytes) => createHash('sha256').update(bytes).digest('hex');

if (!isMainThread) {
  const memory = randomBytes(8 << 20);
  const before = digest(memory);
  let n = 0;
  setInterval(() => parentPort.postMessage({ n: ++n }), 2);
  parentPort.on('message', () => parentPort.postMessage({ same: digest(memory) === before }));
} else {
  main();
}

async function main() {
  const memory = randomBytes(32 << 20);
  const before = digest(memory);
  const objects = new Map(Array.from({ length: 50000 }, (_, i) => [`key ${i}`, { i, text: `value ${i}` }]));
  const count = { interval: 0, immediate: 0, workers: [0, 0], file: 0 };
  setInterval(() => count.interval++, 2);
  const spin = () => { count.immediate++; setTimeout(spin, 1); };
  spin();
  const answers = [];
  const workers = [0, 1].map((i) => {
    const worker = new Worker(__filename);
    worker.on('message', (m) => { if (m.n) count.workers[i] = m.n; else answers.push(m.same); });
    return worker;
  });
  // Through the pool of threads.
  (async () => {
    for (;;) {
      await fs.promises.writeFile('/data/file', `${count.file}`);
      const text = await fs.promises.readFile('/data/file', 'utf8');
      if (text !== `${count.file}`) problem(`file: ${text}, was ${count.file}`);
      count.file++;
    }
  })();
  const server = http.createServer((request, response) => response.end(`${request.socket.remotePort}`));
  await new Promise((listening) => server.listen(8080, '127.0.0.1', listening));
  const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });
  const get = () => new Promise((resolve, reject) => {
    http.get({ port: 8080, host: '127.0.0.1', agent }, (response) => {
      let text = '';
      response.on('data', (part) => { text += part; });
      response.on('end', () => resolve(text));
    }).on('error', reject);
  });
  const port = await get();
  const cat = spawn('cat');
  const echo = (text) => new Promise((resolve) => {
    cat.stdout.once('data', (data) => resolve(`${data}`));
    cat.stdin.write(text);
  });
  await echo('before');

  let problems = 0;
  function problem(text) { problems++; console.log(text); }
  const same = (what, now, then) => { if (now !== then) problem(`${what}: ${now}, was ${then}`); };
  const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
  async function grows(what, value) {
    const from = value();
    for (let i = 0; value() <= from; i++) {
      if (i > 60000) return problem(`${what} stays at ${from}`);
      await sleep(1);
    }
  }
  process.on('SIGUSR1', async () => {
    same('memory', digest(memory), before);
    same('objects', [...objects].every(([k, v]) => k === `key ${v.i}` && v.text === `value ${v.i}`), true);
    await grows('interval', () => count.interval);
    await grows('timeouts', () => count.immediate);
    await grows('worker 0', () => count.workers[0]);
    await grows('worker 1', () => count.workers[1]);
    await grows('files', () => count.file);
    workers.forEach((worker) => worker.postMessage('verify'));
    for (let i = 0; answers.length < 2 && i < 60000; i++) await sleep(1);
    same("workers' memory", `${answers}`, 'true,true');
    same('the connection', await get(), port);
    same('the child', await echo('after'), 'after');
    if (problems === 0) console.log('ok');
    process.exit(problems === 0 ? 0 : 1);
  });
  for (const value of [() => count.interval, () => count.workers[0], () => count.workers[1], () => count.file]) {
    await grows('start', value);
  }
  console.log('ready');
}
