/**
 * The built command line as its users run it: processes, pipes, signals and exit codes. Each command runs against a
 * broker that `sluice serve` runs on a free port.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { open, readdir, writeFile } from 'node:fs/promises'
import { connect as connectSocket, createServer, type AddressInfo, type Socket } from 'node:net'
import { join } from 'node:path'
import { connect } from '@sluice/client'
import { CONTENT_TYPE, LIMITS, OP, encodeFault, encodePreface } from '@sluice/protocol'
import { describe, expect, test } from 'vitest'
import {
  BINARY,
  SMALL_LOG,
  broker,
  directory,
  ended,
  expectFailure,
  run,
  runProcess,
  sluice,
  start,
  startBroker,
  until,
} from './cli.js'
import type { Result } from './command.js'
import { batch, frame, publishFrame, type RecordOf } from '../rig/frames.js'
import { Peer } from '../rig/peer.js'
import { environment } from '../rig/process.js'

describe.concurrent('usage', () => {
  test('help goes to stdout: alone, by flag and by word', async () => {
    const [bare, flag, word, command] = await Promise.all([
      runProcess([]),
      runProcess(['--help']),
      runProcess(['help']),
      runProcess(['queue', 'ensure', '--help']),
    ])
    for (const { code, stderr } of [bare, flag, word, command]) {
      expect(stderr).toBe('')
      expect(code).toBe(0)
    }
    expect(bare.stdout).toContain('sluice publish <queue> [body]')
    expect(bare.stdout).toContain(
      'Exit codes: 0 ok, 1 failure, 2 usage, 4 not found, 5 denied, 6 unreachable.',
    )
    expect(flag.stdout).toBe(bare.stdout)
    expect(word.stdout).toBe(bare.stdout)
    expect(command.stdout).toContain('--max-deliveries')
  })

  test('the version is printed as one line on stdout', async () => {
    const { code, stdout } = await runProcess(['--version'])
    expect(stdout).toMatch(/^\d+\.\d+\.\d+\S*\n$/)
    expect(code).toBe(0)
  })

  const mistakes: readonly (readonly [string, readonly string[], RegExp, RegExp])[] = [
    ['a typo of a command', ['consum', 'q'], /Unknown command "consum"/, /`sluice consume`/],
    [
      'a typo of a command that has an option',
      ['consum', 'q', '--count', '1'],
      /Unknown command "consum"/,
      /`sluice consume`/,
    ],
    [
      'a typo of a queue command that has an option',
      ['queue', 'ensur', 'q', '--ttl', '1h'],
      /Unknown command "queue ensur"/,
      /ensure/,
    ],
    [
      'queue without a command',
      ['queue'],
      /needs a command/,
      /ensure, edit, get, list, delete, purge, pause, resume/,
    ],
    ['a typo of an option', ['serve', '--prot', '1'], /Unknown option --prot/, /--port/],
    [
      '--no- before an option that takes a value',
      ['publish', 'q', 'b', '--no-key'],
      /Unknown option --no-key/,
      /--key/,
    ],
    ['a missing name', ['queue', 'get'], /<name> is missing: sluice queue get <name>/, /queue get --help/],
    ['one argument too many', ['publish', 'q', 'a', 'b'], /Unexpected argument "b"/, /Quote an argument/],
    ['an option without its value', ['consume', 'q', '--count'], /--count needs a value/, /\S/],
    ['an option given twice', ['serve', '--port', '1', '--port', '2'], /--port is given twice/, /\S/],
    [
      'an option out of bounds',
      ['queue', 'ensure', 'q', '--max-deliveries', '65536'],
      /"65536".* 1 to 65535/,
      /\S/,
    ],
    ['an invalid address', ['queue', 'list', '--url', 'http://x'], /"http:\/\/x"/, /sluice:\/\//],
    ['a body twice', ['publish', 'q', 'b', '--file', 'f'], /mutually exclusive/, /\S/],
    ['a header without a value', ['publish', 'q', 'b', '--header', 'a'], /"a"/, /name=value/],
    ['a flag with a value', ['queue', 'list', '--json=foo'], /--json is "foo"/, /without a value/],
    ['a flag with an empty value', ['dead', 'redrive', 'q', '--dryRun='], /--dryRun is ""/, /without a/],
    ['a short flag with a value', ['queue', 'rm', 'q', '-y=no'], /-y is "no"; it must be true/, /-y without/],
    [
      'a flag of a queue option with a value',
      ['queue', 'ensure', 'q', '--single=1'],
      /--single is "1"/,
      /\S/,
    ],
    ['a host other than this one', ['serve', '--host', '0.0.0.0'], /no authentication/, /127\.0\.0\.1/],
    [
      'messages larger than segments',
      ['serve', '--data-dir', 'x', '--segment-bytes', '1MiB'],
      /quarter/,
      /\S/,
    ],
  ]
  test.each(mistakes)('%s is a usage error', async (_name, args, what, hint) => {
    expectFailure(await run(args), 2, what, hint)
  })

  test('settings can come from environment variables', async () => {
    expectFailure(
      await run(['serve'], { env: { SLUICE_DATADIR: 'x' } }),
      2,
      /SLUICE_DATADIR/,
      /SLUICE_DATA_DIR/,
    )
  })

  test('malicious queue names are refused with an error of one line', async () => {
    const names = ['', '-x', '\u001b[31ma\nb', 'x'.repeat(256)]
    const results = await Promise.all(names.map((name) => run(['queue', 'ensure', '--', name])))
    for (const result of results) expectFailure(result, 2, /queue name/)
    expect(results).toHaveLength(names.length)
  })

  test('with --json an error is a JSON document', async () => {
    const { code, stdout, stderr } = await run(['queue', 'get', 'missing', '--json'])
    expect(JSON.parse(stderr)).toEqual({
      error: {
        code: 'QUEUE_NOT_FOUND',
        message: expect.stringContaining('missing') as string,
        advice: expect.stringContaining('queue ensure') as string,
      },
    })
    expect(stdout).toBe('')
    expect(code).toBe(4)
  })
})

// Most tests run commands in their own process, where a command that does not end its process would not be noticed.
test('each command ends its process, with the output and the exit code that it has in the process of the tests', async () => {
  await sluice.queues.ensure('both', { retain: { age: '1d' } })
  await sluice.publishBatch(
    'both',
    ['first', 'second'].map((body) => ({ body, id: body, delay: '1h' })),
  )
  const commands = [
    'queue consumers both',
    'queue edit both --ttl 0',
    'queue ensure both --ttl 1s',
    'publish both first --id first',
    'consume both --wait 0',
    'consume both --wait 0 --count 1',
    'peek both --limit 1 --json',
    'cancel both --offset 9',
    'reschedule both --offset 1 --at 2100-05-01T10:00Z',
    'dead list both',
    'dead redrive both',
    'dead redrive both --offset 1',
    'replay both --from 0 --dry-run',
    'history both 0 --json',
    'consum both',
  ].map((command) => command.split(' '))
  const results: Result[] = []
  for (const args of commands) results.push(await run(args))
  const codes = new Set(results.map(({ code }) => code))
  expect([...codes].toSorted((a, b) => a! - b!)).toEqual([0, 1, 2, 4])
  for (let at = 0; at < commands.length; at += 4) {
    const some = await Promise.all(commands.slice(at, at + 4).map((args) => runProcess(args)))
    for (const [index, result] of some.entries())
      expect(result, commands[at + index]!.join(' ')).toEqual(results[at + index])
  }
})

describe.concurrent('queues', () => {
  test('are created, shown, changed and deleted', async () => {
    const made = await run(['queue', 'ensure', 'life', '--max-deliveries', '5', '--retry-initial', '2s'])
    expect(made).toEqual({ code: 0, stdout: '', stderr: 'Created the queue life.\n' })
    const again = await run(['queue', 'ensure', 'life'])
    expect(again).toEqual({ code: 0, stdout: '', stderr: 'The queue life is unchanged.\n' })
    expectFailure(
      await run(['queue', 'ensure', 'life', '--max-deliveries', '6']),
      1,
      /other options/,
      /--update/,
    )

    const updating = ['queue', 'ensure', 'life', '--retry-max', '2m', '--update']
    const { stderr } = await run(updating)
    expect(stderr).toBe('Changed the queue life: retry-max 5m → 2m.\n')
    expect((await run(updating)).stderr).toBe('The queue life is unchanged.\n')

    const updated = await run(['queue', 'ensure', 'life', '--retry-max', '1m', '--update', '--json'])
    expect(JSON.parse(updated.stdout)).toMatchObject({
      created: false,
      queue: { name: 'life', options: { maxDeliveries: 5, retry: { initial: 2_000, max: 60_000 } } },
    })
    const shown = await run(['queue', 'get', 'life'])
    expect(shown.stdout).toContain('max deliveries  5\nretry initial   2s\nretry max       1m\n')
    expect(JSON.parse((await run(['queue', 'info', 'life', '--json'])).stdout)).toMatchObject({
      name: 'life',
      ready: 0,
    })

    await sluice.publish('life', 'hello')
    expect(await run(['queue', 'purge', 'life', '--yes'])).toMatchObject({
      code: 0,
      stderr: 'Purged 1 message from the queue life.\n',
    })
    const deleted = await run(['queue', 'rm', 'life', '-y', '--json'])
    expect(JSON.parse(deleted.stdout)).toEqual({ name: 'life', messages: 0 })
    expectFailure(await run(['queue', 'delete', 'life', '--yes']), 4, /life/)
  })

  test('are looked up before a delete asks for its confirmation', async () => {
    await sluice.queues.ensure('looked/up')
    const [kept, typo, json] = await Promise.all([
      run(['queue', 'rm', 'looked/up']),
      run(['queue', 'delete', 'looked/upp']),
      run(['queue', 'purge', 'looked/upp', '--json=true']),
    ])
    expectFailure(kept, 2, /requires a terminal/, /--yes/)
    expectFailure(typo, 4, /looked\/upp/)
    expect(JSON.parse(json.stderr)).toMatchObject({ error: { code: 'QUEUE_NOT_FOUND' } })
    expect((await sluice.queues.get('looked/up')).name).toBe('looked/up')
  })

  test('are listed as a table and as JSON', async () => {
    await sluice.queues.ensure('list/b')
    await sluice.queues.ensure('list/a')
    const [table, json] = await Promise.all([run(['queue', 'list']), run(['queue', 'ls', '--json'])])
    const lines = table.stdout.split('\n')
    expect(lines[0]).toMatch(
      /^NAME +READY {2}SCHEDULED {2}LEASED {2}DEAD +BYTES {2}CONSUMERS {2}OLDEST {2}PAUSED$/,
    )
    const row = lines.find((line) => line.startsWith('list/a'))!
    expect(row.indexOf('0') + 1, 'numbers are aligned with the end of their title').toBe(
      lines[0]!.indexOf('READY') + 'READY'.length,
    )
    const names = (JSON.parse(json.stdout) as { name: string }[]).map(({ name }) => name)
    expect(names).toEqual(names.toSorted())
    expect(names).toContain('list/b')
  })
})

describe.concurrent('messages', () => {
  test('are published from an argument, even one that looks like an option or a command, and printed to stdout', async () => {
    await sluice.queues.ensure('words')
    const bodies = ['help', '-5', '007', '', '--help grüße']
    for (const [offset, body] of bodies.entries()) {
      expect(await run(['publish', 'words', '--', body])).toEqual({
        code: 0,
        stdout: `offset ${offset}\n`,
        stderr: '',
      })
    }
    const { code, stdout, stderr } = await run(['consume', 'words', '--count', String(bodies.length)])
    expect(stdout).toBe(bodies.map((body) => `${body}\n`).join(''))
    expect(stderr).toBe('')
    expect(code).toBe(0)
  })

  test('of each type are consumed unchanged, with their options and headers', async () => {
    await sluice.queues.ensure('types')
    const file = join(directory, 'bytes')
    await writeFile(file, Uint8Array.of(0, 255, 10))
    const receipt = await run([
      'publish',
      'types',
      'text',
      '--header',
      'a=b',
      '--header',
      'c.d=e=f',
      '--json',
    ])
    expect(JSON.parse(receipt.stdout)).toEqual({ queue: 'types', offset: 0, duplicate: false })
    await run(['publish', 'types', '{"n":[1,null]}', '--body-type', 'json'])
    await run(['publish', 'types', '--file', file, '--body-type', 'bytes'])
    await run(['publish', 'types', '--file', '-'], { input: 'two\nlines\n' })
    const held = await run(['consume', 'types', '--count', '4', '--no-ack', '--json'])
    const messages = held.stdout
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as object)
    expect(messages).toMatchObject([
      {
        queue: 'types',
        offset: 0,
        attempt: 1,
        redelivered: false,
        bodyType: 'text',
        body: 'text',
        headers: { a: 'b', 'c.d': 'e=f' },
      },
      { offset: 1, bodyType: 'data', body: { n: [1, null] } },
      { offset: 2, bodyType: 'bytes', body: 'AP8K' },
      { offset: 3, bodyType: 'text', body: 'two\nlines\n' },
    ])
    // The messages were released in order.
    const again = await run(['consume', 'types', '--count', '2'])
    expect(again.stdout).toBe('text\n{"n":[1,null]}\n')
    expect(await sluice.queues.get('types')).toMatchObject({
      ready: 2,
      leased: 0,
      acked: 2,
    })
  })

  test('that cannot be decoded are retried, and do not hide the others', async () => {
    const peer = await Peer.open(broker.port)
    // This byte starts no msgpack value.
    const unreadable = { payload: Uint8Array.of(0xc1), contentType: CONTENT_TYPE.msgpack }
    const good = (text: string): RecordOf => ({ payload: Buffer.from(text), contentType: CONTENT_TYPE.text })
    let number = 0
    for (const [name, maxDeliveries] of [
      ['first', 10],
      ['undecoded', 1],
      ['kept', 10],
    ] as const) {
      await sluice.queues.ensure(name, { maxDeliveries, retry: { initial: '1h', max: '1h' } })
      peer.send(publishFrame(name, batch(++number, [unreadable, good('a'), good('b')])))
      await peer.frame(OP.PUBLISH_OK)
    }
    await peer.dispose()
    const failed = (text: string, queue: string): object => ({
      code: 1,
      stdout: text,
      stderr: expect.stringMatching(
        new RegExp(
          `^Message 0 of ${queue}: The body is not .*\nerror: 1 attempt .*\n hint: .*\\bpeek ${queue}\\b.*\n$`,
        ),
      ) as string,
    })
    expect(await run(['consume', 'first', '--count', '1'])).toEqual(failed('a\n', 'first'))
    expect(await sluice.queues.get('first')).toMatchObject({ ready: 1, scheduled: 1, acked: 1 })
    expect(await run(['consume', 'undecoded', '--wait', '0'])).toEqual(failed('a\nb\n', 'undecoded'))
    expect((await sluice.dead.get('undecoded', 0)).error).toMatch(/^The body is not/)
    // The unreadable message is among the held messages.
    expect(await run(['consume', 'kept', '--no-ack', '--count', '2'])).toEqual(failed('a\n', 'kept'))
    const { messages } = await sluice.queues.peek('kept')
    expect(messages.map(({ state, attempts }) => [state, attempts])).toEqual([
      ['ready', 0],
      ['ready', 0],
      ['ready', 0],
    ])
  })

  test('that cannot be parsed are refused with their line number, after the preceding ones are published', async () => {
    await sluice.queues.ensure('broken')
    const [json, text, single, missing, file, large] = await Promise.all([
      run(['publish', 'broken', '--body-type', 'json'], { input: '1\n\n{\n2\n' }),
      run(['publish', 'broken'], { input: Uint8Array.of(97, 10, 255, 10) }),
      run(['publish', 'broken', '{', '--body-type', 'json']),
      run(['publish', 'nowhere'], { input: 'a\nb\n' }),
      run(['publish', 'broken', '--file', 'not-there']),
      run(['publish', 'broken', '--file', '-'], { input: 'x'.repeat(LIMITS.messageBytesDefault + 1) }),
    ])
    expect(json.stderr).toMatch(
      /^Published 1 message to broken, offset \d\. Then the command failed:\nerror: Line 3 is not JSON.*\n hint: .*\n$/,
    )
    expect(json.code).toBe(1)
    expect(text.stderr).toMatch(/Published 1 message .*\nerror: Line 2 is not UTF-8/)
    expect(text.code).toBe(1)
    expectFailure(single, 1, /not JSON/)
    expect(missing.stderr).toMatch(/^Published 0 messages.* line 1:\nerror: .*nowhere/)
    expect(missing.code).toBe(4)
    expectFailure(file, 1, /not-there/, /path/)
    expectFailure(large, 1, /1048577 bytes.* at most 1MiB/, /--max-message-bytes/)
  })

  test('an empty input also needs an existing queue', async () => {
    await sluice.queues.ensure('exists')
    const [none, blank, exists] = await Promise.all([
      run(['publish', 'nowhere'], { input: '' }),
      run(['publish', 'nowhere', '--body-type', 'json'], { input: '\n \n' }),
      run(['publish', 'exists'], { input: '' }),
    ])
    for (const { stderr, code } of [none, blank]) {
      expect(stderr).toMatch(
        /^Published 0 messages to nowhere. Then the command failed:\nerror: .*nowhere.*\n hint: .*ensure/,
      )
      expect(code).toBe(4)
    }
    expect(exists).toEqual({ code: 0, stdout: '', stderr: 'Published 0 messages to exists.\n' })
  })

  test('10,000 lines of stdin become 10,000 messages, in the same order', async () => {
    await sluice.queues.ensure('lines')
    const count = 10_000
    const input = Array.from({ length: count }, (_, index) => `line ${index}\n`).join('')
    const published = await run(['publish', 'lines'], { input })
    expect(published.stdout).toBe('')
    expect(published.stderr).toMatch(
      /^Published 10,000 messages to lines, offsets 0 to 9999, [\d,]+ per second\.\n$/,
    )
    const receipts = await run(['publish', 'lines', '--json'], { input: 'a\r\n\nb' })
    expect(
      receipts.stdout
        .trimEnd()
        .split('\n')
        .map((line) => (JSON.parse(line) as { offset: number }).offset),
    ).toEqual([count, count + 1, count + 2])
    const consumed = await run(['consume', 'lines', '--wait', '0'])
    expect(consumed.stdout).toBe(`${input}a\n\nb\n`)
    expect(consumed.code).toBe(0)
  })

  test('that are fewer than --count within --wait end with the exit code 4', async () => {
    await sluice.queues.ensure('few')
    await sluice.publish('few', 'one')
    const few = await run(['consume', 'few', '--count', '2', '--wait', '0'])
    expect(few).toEqual({
      code: 4,
      stdout: 'one\n',
      stderr: 'Consumed 1 message of 2: no more arrived within --wait.\n',
    })
    expect(await run(['consume', 'few', '--count', '1', '--wait', '0'])).toMatchObject({
      code: 4,
      stdout: '',
    })
  })

  test('that were published before are counted as duplicates', async () => {
    await sluice.queues.ensure('again')
    const publish = ['publish', 'again', 'body', '--id', 'a']
    expect((await run(publish)).stdout).toBe('offset 0\n')
    expect((await run(publish)).stdout).toBe('offset 0 (duplicate)\n')
  })

  test('keep the numbers of their JSON exactly, or are refused', async () => {
    await sluice.queues.ensure('exact')
    const publish = (body: string): ReturnType<typeof run> =>
      run(['publish', 'exact', body, '--body-type', 'json'])
    const kept = String.raw`{"a":9007199254740991,"b":"9007199254740993 \"9007199254740993","c":-1.5e3}`
    expect(await publish(kept)).toMatchObject({ code: 0 })
    for (const number of ['9007199254740993', '-9007199254740993', '1e400']) {
      const refused = await publish(`{"text":"1","list":[0,${number}]}`)
      expectFailure(refused, 1, new RegExp(`the number "${number}"`), /\S/)
    }
    expect((await run(['consume', 'exact', '--count', '1'])).stdout).toBe(
      `${JSON.stringify(JSON.parse(kept))}\n`,
    )
  })

  test('are released when the reader of stdout closes its pipe', async () => {
    await sluice.queues.ensure('early')
    const count = 20_000
    await sluice.publishBatch(
      'early',
      Array.from({ length: count }, () => ({ body: 'x'.repeat(20) })),
    )
    const child = start(['consume', 'early'], { SLUICE_URL: broker.url })
    child.stdout.once('data', () => child.stdout.destroy())
    const { code, stderr } = await ended(child)
    expect(stderr).toBe('')
    expect(code).toBe(0)
    const info = await sluice.queues.get('early')
    expect(info).toMatchObject({ leased: 0, consumers: 0 })
    expect(info.acked).toBeGreaterThan(0)
    expect(info.ready).toBe(count - info.acked)
    expect(info.ready).toBeGreaterThan(0)
  })

  test('are published without an error when the reader of the receipts closes its pipe', async () => {
    await sluice.queues.ensure('receipts')
    const child = start(['publish', 'receipts', '--json'], { SLUICE_URL: broker.url })
    child.stdout.once('data', () => child.stdout.destroy())
    child.stdin.end('line\n'.repeat(50_000))
    const { code, stderr } = await ended(child)
    expect(code).toBe(0)
    expect(stderr).toMatch(/^Published [\d,]+ messages to receipts, .*\.\n$/)
  })

  test('that cannot be written are not acknowledged', async () => {
    await sluice.queues.ensure('full')
    await sluice.publish('full', 'hello')
    const full = await open('/dev/full', 'w')
    const child = spawn(process.execPath, [BINARY, 'consume', 'full', '--count', '1'], {
      env: environment({ SLUICE_URL: broker.url }),
      stdio: ['ignore', full.fd, 'pipe'],
    })
    let stderr = ''
    child.stderr!.setEncoding('utf8').on('data', (text: string) => (stderr += text))
    const [code] = (await once(child, 'close')) as [number]
    await full.close()
    expect(stderr).toMatch(/^error: No space left.*\n hint: .*\n$/)
    expect(code).toBe(1)
    const [message] = await sluice.pull('full')
    expect(message).toMatchObject({ body: 'hello', attempt: 1 })
    await message!.ack()
  })

  test('are consumed until Ctrl-C, which exits with 130', async () => {
    await sluice.queues.ensure('endless')
    const child = start(['consume', 'endless'], { SLUICE_URL: broker.url })
    const result = ended(child)
    const received = once(child.stdout, 'data')
    await sluice.publish('endless', 'hello')
    await received
    child.kill('SIGINT')
    expect(await result).toEqual({ code: 130, stdout: 'hello\n', stderr: '' })
    expect(await sluice.queues.get('endless')).toMatchObject({
      acked: 1,
      consumers: 0,
    })
  })

  test('published from a stdin that stays open are counted at Ctrl-C', async () => {
    await sluice.queues.ensure('typed')
    const child = start(['publish', 'typed', '--json'], { SLUICE_URL: broker.url })
    const result = ended(child)
    const received = once(child.stdout, 'data')
    child.stdin.write('one\n')
    await received
    child.kill('SIGINT')
    expect(await result).toMatchObject({ code: 130, stderr: 'Published 1 message to typed, offset 0.\n' })
  })

  test('end when their queue is deleted, or does not exist', async () => {
    expectFailure(await run(['consume', 'nowhere']), 4, /nowhere/, /queue ensure/)
    await sluice.queues.ensure('doomed')
    const consuming = run(['consume', 'doomed'])
    await until(async () => (await sluice.queues.get('doomed')).consumers === 1)
    await sluice.queues.delete('doomed')
    expectFailure(await consuming, 4, /doomed/)
  })
})

describe.concurrent('connections', () => {
  test('a broker that does not run', async () => {
    const result = await runProcess(['queue', 'list', '--url', 'sluice://127.0.0.1:1', '--timeout', '200ms'])
    expectFailure(result, 6, /127\.0\.0\.1:1/, /sluice serve/)
  })

  test('a broker that refuses', async () => {
    const payload = encodeFault({
      code: 'AUTH_FAILED',
      scope: 'connection',
      retryable: false,
      retryAfterMs: 0,
      message: 'Who are you?\u001b[31m',
    })
    const sockets = new Set<Socket>()
    const server = createServer((socket) => {
      sockets.add(socket)
      socket.on('error', () => {})
      socket.write(encodePreface())
      socket.end(frame(OP.ERROR, 0, 0, payload))
    })
    await once(server.listen(0, '127.0.0.1'), 'listening')
    const { port } = server.address() as AddressInfo
    const result = await run(['queue', 'list', '--url', `sluice://127.0.0.1:${port}`])
    for (const socket of sockets) socket.destroy()
    server.close()
    expectFailure(result, 5, /Who are you\?\\u\{1b\}\[31m/)
  })

  test('a peer that closes each connection at once is not a broker, so nothing can have taken effect', async () => {
    const server = createServer((socket) => {
      socket.on('error', () => {})
      socket.end()
    })
    await once(server.listen(0, '127.0.0.1'), 'listening')
    const { port } = server.address() as AddressInfo
    const result = await run(['publish', 'q', 'x', '--url', `sluice://127.0.0.1:${port}`])
    server.close()
    expectFailure(result, 6, /closed the connection before the handshake/, /Start a broker/)
  })

  test('a malicious client name stays within one line of the log', async () => {
    const name = 'evil\n{"level":"fatal"}\u001b[31m\u009b31m\u2028end'
    const evil = await connect(broker.url, { name })
    await evil.close()
    await until(() => broker.lines.some((line) => line.includes('evil')))
    const line = broker.lines.find((line) => line.includes('evil'))!
    expect(JSON.parse(line)).toMatchObject({ msg: 'connection closed' })
    expect(line).not.toMatch(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/u)
    for (const other of broker.lines) expect(JSON.parse(other)).toHaveProperty('msg')
  })
})

describe.concurrent('serve', () => {
  test.runIf(process.platform === 'linux')(
    'refuses a path at which no directory can be created, with a sentence that names the path',
    async () => {
      const places: [string, RegExp, RegExp][] = [
        ['/proc/x', /\/proc\/x cannot be used: no such file or directory/, /path/],
        ['/dev/null', /\/dev\/null cannot be used: not a directory/, /file/],
        ['/dev/null/x', /\/dev\/null\/x cannot be used: not a directory/, /file/],
        [`/tmp/${'x'.repeat(300)}`, /cannot be used: name too long/, /shorter/],
      ]
      for (const [place, what, advice] of places)
        expectFailure(await run(['serve', '--port', '0', '--data-dir', place]), 1, what, advice)
    },
  )

  test('a second broker on the same directory, or on the same port', async () => {
    const [locked, taken] = await Promise.all([
      run(['serve', '--port', '0', '--data-dir', broker.dataDir]),
      run(['serve', '--port', String(broker.port), '--data-dir', 'taken', ...SMALL_LOG]),
    ])
    expectFailure(locked, 1, new RegExp(`process id ${broker.child.pid} .*${broker.dataDir}`), /--data-dir/)
    expectFailure(taken, 1, new RegExp(`127\\.0\\.0\\.1:${broker.port}: the port is in use`), /--port/)
  })

  test('stops in an orderly way at SIGTERM, and has its messages when it starts again', async () => {
    const dataDir = join(directory, 'again')
    const first = await startBroker(dataDir)
    const client = await connect(first.url)
    await client.queues.ensure('kept')
    await client.publish('kept', 'still here')
    await client.close()
    first.child.kill('SIGTERM')
    expect(await first.closed).toBe(0)
    expect(first.lines.map((line) => (JSON.parse(line) as { msg: string }).msg)).toEqual([
      'listening',
      'stopping',
      'stopped',
    ])

    const second = await startBroker(dataDir)
    expect(JSON.parse(second.lines[0]!)).toMatchObject({
      msg: 'listening',
      level: 'info',
      dataDir,
      address: second.url,
      queues: 1,
      messages: 1,
      afterCrash: false,
    })
    expect((await run(['consume', 'kept', '--count', '1', '--url', second.url])).stdout).toBe('still here\n')
    second.child.kill('SIGINT')
    expect(await second.closed).toBe(0)
  })

  test('ends at once at a second signal', async () => {
    const stubborn = await startBroker(join(directory, 'stubborn'))
    // The peer never closes its side, so an orderly stop takes a while.
    const socket = connectSocket({ port: stubborn.port, host: '127.0.0.1', allowHalfOpen: true })
    socket.on('error', () => {})
    await once(socket, 'connect')
    stubborn.child.kill('SIGTERM')
    await until(() => stubborn.lines.some((line) => line.includes('"stopping"')))
    // The first repeated signals arrive so soon after SIGTERM that they count as the same signal.
    await until(
      () => !stubborn.child.kill('SIGTERM') || stubborn.lines.some((line) => line.includes('second')),
    )
    expect(await stubborn.closed).toBe(143)
    expect(stubborn.lines.at(-1)).toBe('Ended immediately by a second SIGTERM.')
    socket.destroy()
  })

  test('does not start on a damaged log', async () => {
    const dataDir = join(directory, 'damaged')
    const healthy = await startBroker(dataDir)
    const client = await connect(healthy.url)
    await client.queues.ensure('q')
    await client.close()
    healthy.child.kill('SIGTERM')
    await healthy.closed
    const segment = (await readdir(dataDir)).filter((name) => name.endsWith('.segment')).sort()[0]!
    const file = await open(join(dataDir, segment), 'r+')
    await file.write(Buffer.from('damage'), 0, 6, 4096 + 100)
    await file.close()
    expectFailure(await run(['serve', '--port', '0', '--data-dir', dataDir]), 1, /damaged/, /backup/)
  })

  test('ends with 70 when its log cannot be written', async () => {
    const failing = await startBroker(join(directory, 'failing'))
    const client = await connect(failing.url)
    await client.queues.ensure('q')
    await client.close()
    const limit = spawn('/usr/bin/prlimit', ['--pid', String(failing.child.pid), '--fsize=4096'])
    expect(await once(limit, 'close')).toEqual([0, null])
    // A publish could be refused because no segment is free; the creation of a queue is always written.
    const ensured = await run(['queue', 'ensure', 'other', '--url', failing.url, '--timeout', '500ms'])
    expect(ensured.code, ensured.stderr).toBe(6)
    expect(await failing.closed).toBe(70)
    const fatal = failing.lines.map((line) => JSON.parse(line) as { level: string; code?: string })
    expect(fatal.filter(({ level }) => level === 'fatal')).toMatchObject([{ code: 'LOG_FAILED' }])
    expect(fatal.at(-1)).toMatchObject({ level: 'fatal' })
  })
})

describe('bench', () => {
  const QUICK = ['bench', '--duration', '100ms', '--warmup', '0']

  async function queuesOfRuns(): Promise<string[]> {
    return (await sluice.queues.list()).map(({ name }) => name).filter((name) => name.startsWith('bench-'))
  }

  test('measures, and leaves no queue behind', async () => {
    const result = await runProcess([...QUICK, '--json'])
    expect(result, result.stderr).toMatchObject({ code: 0, stderr: '' })
    const { publish, consume } = JSON.parse(result.stdout) as Record<string, { failed: number }>
    expect([publish, consume]).toMatchObject([{ failed: 0 }, { failed: 0 }])
    expect(await queuesOfRuns()).toEqual([])
  })

  test.each([
    [['--producers', '-1'], /--producers must be a whole number from 0/],
    [['--consumers', 'many'], /--consumers must be/],
    [['--size', '7'], /--size must be a whole number from 8/],
    [['--in-flight', '0'], /--in-flight must be a whole number from 1/],
    [['--rate', '-5'], /--rate must be/],
    [['--producers', '0', '--messages', '0'], /--messages must be/],
    [['--producers', '0', '--consumers', '3', '--messages', '2'], /each consumer needs at least one message/],
    [['--producers', '0', '--consumers', '0'], /nothing to measure/],
    [['--duration', 'long'], /--duration/],
    [['--duration', '0'], /--duration is "0"; it must be at least 1ms/],
    [['--queue', 'two words'], /queue name/],
  ])('refuses %j', async (args, message) => {
    expectFailure(await run([...QUICK.slice(0, 1), ...args]), 2, message, /./)
  })

  test('ends when the broker accepts none of its messages', async () => {
    expectFailure(await runProcess([...QUICK, '--size', '2000000']), 1, /2000000 bytes/, /smaller/)
    expect(await queuesOfRuns()).toEqual([])
  })

  test.each(['SIGINT', 'SIGTERM'] as const)(
    '%s ends the measurement at once and deletes its queue',
    async (signal) => {
      const child = start(['bench', '--duration', '30d', '--url', broker.url])
      const result = ended(child)
      await until(async () => {
        const [name] = await queuesOfRuns()
        return name !== undefined && (await sluice.queues.get(name)).published > 0
      })
      child.kill(signal)
      expect(await result).toEqual({ code: signal === 'SIGINT' ? 130 : 143, stdout: '', stderr: '' })
      expect(await queuesOfRuns()).toEqual([])
    },
  )
})
