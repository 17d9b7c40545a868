/**
 * Finds the servers that test/load/peers/fetch.sh fetched, and their clients, in the directory LOAD_PEERS.
 * The name does not begin with SLUICE_, because the broker refuses variables with that prefix that it does not know.
 */
import { existsSync, readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'

/** The path of a file in the directory LOAD_PEERS; undefined if it does not exist. */
export function fetchedPath(...names: readonly string[]): string | undefined {
  const directory = process.env['LOAD_PEERS']
  if (directory === undefined || directory === '') return undefined
  const path = join(directory, ...names)
  return existsSync(path) ? path : undefined
}

/** A fetched program, or else the name of the command, which is then looked up on PATH. */
export function programOf(command: string): string {
  return fetchedPath('bin', command) ?? command
}

/** The version of a fetched client; undefined if it was not fetched. */
export function clientVersion(name: string): string | undefined {
  const manifest = fetchedPath('node_modules', name, 'package.json')
  if (manifest === undefined) return undefined
  return (JSON.parse(readFileSync(manifest, 'utf8')) as { readonly version: string }).version
}

/** Loads a fetched client. `T` has the part of its module that is used. */
export async function importClient<T>(name: string): Promise<T> {
  const { resolve } = createRequire(fetchedPath('package.json')!)
  return (await import(pathToFileURL(resolve(name)).href)) as T
}

/** Whether a version like `24.6.0` is at least the other one. */
export function isAtLeast(version: string, least: string): boolean {
  const parts = version.split('.').map(Number)
  for (const [index, wanted] of least.split('.').map(Number).entries()) {
    const part = parts[index] ?? 0
    if (part !== wanted) return part > wanted
  }
  return true
}
