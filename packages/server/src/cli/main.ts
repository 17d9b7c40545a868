#!/usr/bin/env node
import { startServer } from '../server.js'
const args = process.argv.slice(2)
const opt = (n: string, d: string): string => { const i = args.indexOf('--' + n); return i === -1 ? d : args[i + 1]! }
const server = await startServer({ port: Number(opt('port', '7420')), dataDir: opt('data-dir', './data'), onEvent: (e, d) => process.env['QUIET'] ? undefined : console.error(e, JSON.stringify(d)), onFatal: (e) => { console.error('fatal', e); process.exit(70) } })
console.error('listening', server.port, server.startedMs, JSON.stringify(server.status))
process.on('SIGTERM', () => void server.stop().then(() => process.exit(0)))
