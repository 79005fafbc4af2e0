// The packages are installed in the build directory and the tree stays clean: tells Node where to look for them.

import { registerHooks } from 'node:module';
import { pathToFileURL } from 'node:url';

const here = new URL('.', import.meta.url).href;
const installed = pathToFileURL(`${process.env.NULLHOP_CLIENTS}/node/`).href;

registerHooks({
  resolve(specifier, context, next) {
    const ours = context.parentURL?.startsWith(here) && !/^(\.|\/|file:|node:)/.test(specifier);
    return next(specifier, ours ? { ...context, parentURL: installed } : context);
  },
});
